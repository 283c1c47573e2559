"""A language model that gives the activations of one hook, and its losses when they are replaced.

Everything goes through TransformerLens's hook points (tried with 3.9 and 4.3). The cheapest way to a hook is an
exception out of it: nothing after it runs, whatever the hook; `stop_at_layer=L+1` costs one layer more. Hooks are added
under the hook point's own name (`blocks.6.hook_in`), not the alias (`blocks.6.hook_resid_pre`): TransformerLens can
call a hook once per name, and a replacement must not be applied to its own result.
"""

import contextlib
import difflib
import threading
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prolu_tune.activations.model_info import ModelInfo, describe_model, weight_files
from prolu_tune.activations.quiet import quiet_loading
from prolu_tune.activations.suffix import SuffixPass, Unembedding
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError, SurroundingsError

PROBE_LENGTHS = (5, 7)
"""Two lengths tell positions from heads in a hook's shape."""
MAX_LOGITS = 2**27
"""Logits held at once when losses are computed: 512 MB in float32."""
SUFFIX_TOKENS = 2**10
"""Tokens that pass through the layers after the hook at once on a CPU."""
PIECE_LOGITS = 2**21
"""Logits after the layers after the hook are made so many at once, 8 MB, but for `MIN_PIECE` tokens at least."""
MIN_PIECE = 256

Replacement = Callable[[Float[Tensor, "rows ctx d_in"]], Float[Tensor, "rows ctx d_in"]]


class _HookReachedError(Exception):
    """Leaves the forward pass from inside the hook."""


class LanguageModel:
    """A model with one hook chosen. Calls from several threads take turns."""

    def __init__(self, config: ActivationConfig, *, device: str = "cpu", info: ModelInfo | None = None) -> None:
        """Loads the model; takes seconds, and memory for the weights twice for a moment.

        Args:
            config: model, hook, precision, threads.
            device: a torch device.
            info: what `describe_model` returned for this configuration, if it is at hand.

        Raises:
            InputError: if the model does not exist or has no such hook.
            SurroundingsError: if the hub or the device cannot be reached.
        """
        self.config = config
        self.info = info or describe_model(config)
        self.device = torch.device(device)
        self.tokens_processed = 0
        """Tokens that have passed through the model so far, for whatever purpose."""
        self._lock = threading.RLock()
        self._use_threads()
        self.bridge = _boot(config, self.info, self.device)
        points: dict[str, Any] = self.bridge.hook_dict
        if config.hook_name not in points:
            raise InputError(_unknown_hook(config, list(points)))
        self._hook = str(points[config.hook_name].name or config.hook_name)
        self.d_in = self._probe()
        self._suffix = SuffixPass(self.bridge, self._hook)
        # By position and token id, with the hook at zero; without columns where that does not hold for every row.
        self._zero_losses: Tensor | None = None

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return self.info.num_layers

    @property
    def vocab_size(self) -> int:
        """Number of token ids the model reads."""
        return self.info.vocab_size

    @property
    def loss_batch_size(self) -> int:
        """Sequences per pass in `losses`, so that their logits stay small."""
        return max(1, min(self.config.lm_batch_size, MAX_LOGITS // (self.config.context_length * self.vocab_size)))

    @property
    def suffix_batch_size(self) -> int:
        """Sequences per pass in `losses_from_hook`: on a CPU as many as stay in its cache."""
        of_a_cpu = max(1, SUFFIX_TOKENS // self.config.context_length)
        return min(self.loss_batch_size, of_a_cpu) if self.device.type == "cpu" else self.loss_batch_size

    def activations(self, tokens: Int[Tensor, "rows ctx"]) -> Float[Tensor, "rows ctx d_in"]:
        """Returns the hook's activations in float32 on the device; nothing after the hook is computed."""
        return self._reach(tokens).flatten(2).float()

    def losses(self, tokens: Int[Tensor, "rows ctx"], replacement: Replacement | None = None) -> Float[Tensor, " rows"]:
        """Returns the sum of next-token cross-entropies of each sequence (ctx - 1 predictions), nats, float64.

        Args:
            tokens: at most `loss_batch_size` sequences at a time keeps the logits small.
            replacement: gets the hook's activations (float32) and returns those the model goes on with.
        """

        def replace(tensor: Tensor, hook: object) -> Tensor:
            assert replacement is not None
            return replacement(tensor.flatten(2).float()).reshape(tensor.shape).to(tensor.dtype)

        with self._lock, torch.no_grad():
            logits = self._forward(tokens, None if replacement is None else replace)
            return next_token_losses(logits, tokens.to(self.device))

    def losses_from_hook(
        self, tokens: Int[Tensor, "rows ctx"], activations: Float[Tensor, "rows ctx d_in"]
    ) -> Float[Tensor, " rows"]:
        """Returns `losses` with the hook's activations replaced by given ones.

        Computes only the layers after the hook where the model permits (the residual stream of a plain stack of
        blocks; compared with a full pass at the first call), else everything.
        """
        with self._lock, torch.no_grad():
            activations = activations.to(self.device)
            if self._suffix.checked is None:
                self._suffix.checked = self._check_suffix(tokens[:2], activations[:2])
            if not self._suffix.checked:
                return self.losses(tokens, lambda _: activations)
            return self._suffix_losses(tokens, activations.to(self._dtype))

    def losses_from_zeros(self, tokens: Int[Tensor, "rows ctx"]) -> Float[Tensor, " rows"]:
        """Returns `losses_from_hook` of zeros.

        Where only what is given at the hook decides the logits they are those of any row: one row is run, once.
        """
        with self._lock, torch.no_grad():
            table = self._zero_losses
            if table is None or len(table) != tokens.shape[1] - 1:
                table = self._zero_losses = self._losses_of_zeros(tokens[[0, -1]])
            if table.shape[1] > 0:
                return _looked_up(table, tokens)
            return self.losses_from_hook(tokens, torch.zeros(*tokens.shape, self.d_in, device=self.device))

    def _losses_of_zeros(self, ends: Int[Tensor, "2 ctx"]) -> Float[Tensor, "predictions vocab"]:
        """Returns what each next token would cost, by the pass of one row; no columns if another row's pass says otherwise."""
        zeros = torch.zeros(*ends.shape, self.d_in, device=self.device)
        losses = self.losses_from_hook(ends, zeros)
        if self._suffix.checked:
            with self._suffix.injected(zeros[:1].to(self._dtype)):
                table = -self._forward(ends[:1], None)[0, :-1].float().log_softmax(1)
            if torch.allclose(_looked_up(table, ends), losses, rtol=1e-5):
                return table
        return torch.empty(ends.shape[1] - 1, 0, device=self.device)

    def _suffix_losses(self, tokens: Tensor, activations: Tensor) -> Float[Tensor, " rows"]:
        with self._suffix.injected(activations):
            if self._suffix.unembedding is None:
                return next_token_losses(self._forward(tokens, None), tokens.to(self.device))
            states = self._suffix.final_states(lambda: self._forward(tokens, None))
        assert states is not None
        states = states.view(*tokens.shape, -1)[:, :-1].flatten(0, 1)
        losses = losses_in_pieces(states, self._suffix.unembedding, tokens[:, 1:].to(self.device, torch.long).flatten())
        return losses.view(len(tokens), -1).sum(1, dtype=torch.float64)

    @property
    def skips_to_hook(self) -> bool | None:
        """Whether `losses_from_hook` computes only what comes after the hook; None before its first call."""
        return self._suffix.checked

    @property
    def _dtype(self) -> torch.dtype:
        return getattr(torch, self.config.lm_precision)

    def _forward(self, tokens: Tensor, hook: Callable[..., Any] | None, *, return_type: str | None = "logits") -> Any:
        self._use_threads()
        self.tokens_processed += tokens.numel()
        hooks = [] if hook is None else [(self._hook, hook)]
        tokens = tokens.to(self.device, torch.long)
        return self.bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type=return_type, use_cache=False)

    def _use_threads(self) -> None:
        """Sets the threads that the numerics are defined by; another part of the process may have changed them."""
        if self.device.type == "cpu" and torch.get_num_threads() != self.config.lm_threads:
            torch.set_num_threads(self.config.lm_threads)

    def _reach(self, tokens: Tensor) -> Tensor:
        """Returns what arrives at the hook, in its own shape and precision."""
        found: list[Tensor] = []

        def stop(tensor: Tensor, hook: object) -> None:
            found.append(tensor)
            raise _HookReachedError

        with self._lock, torch.no_grad(), contextlib.suppress(_HookReachedError):
            self._forward(tokens, stop, return_type=None)
        if not found:
            raise InputError(
                f"activations.hook_name {self.config.hook_name} is never reached in {self.info.name}; choose another hook"
            )
        return found[0]

    def _probe(self) -> int:
        """Returns the hook's width, found on tokens of no meaning."""
        found = [self._reach(torch.zeros(2, length, dtype=torch.long)) for length in PROBE_LENGTHS]
        shapes = [tuple(tensor.shape) for tensor in found]
        per_token = all(shape[:2] == (2, length) for shape, length in zip(shapes, PROBE_LENGTHS, strict=True))
        if not (per_token and len(shapes[0]) > 2 and shapes[0][2:] == shapes[1][2:] and found[0].is_floating_point()):
            raise InputError(
                f"activations.hook_name {self.config.hook_name} gives shape {list(shapes[0])} for 2 sequences of "
                f"{PROBE_LENGTHS[0]} tokens, not one vector per token; choose a hook such as blocks.L.hook_resid_pre"
            )
        self.tokens_processed = 0
        return found[0][0, 0].numel()

    def _check_suffix(self, tokens: Tensor, activations: Tensor) -> bool:
        """Returns whether running only the layers after the hook gives the losses of the full pass."""
        halved = activations * 0.5
        if not self._suffix.possible:
            return False
        with self._suffix.observed():
            full = self.losses(tokens, lambda _: halved)
        if not self._suffix.possible:
            return False
        with self._suffix.injected(halved.to(self._dtype)):
            self._suffix.find_unembedding(lambda: self._forward(tokens, None))
        return torch.allclose(full, self._suffix_losses(tokens, halved.to(self._dtype)), rtol=1e-4)


def next_token_losses(logits: Float[Tensor, "rows ctx vocab"], tokens: Int[Tensor, "rows ctx"]) -> Float[Tensor, " rows"]:
    """Returns each row's sum of cross-entropies of token i + 1 given the logits at i; float64.

    Row by row: the temporaries of all rows at once would take as much memory again as the logits.
    """
    sums = []
    for row, targets in zip(logits, tokens.long(), strict=True):
        predicted = row[:-1].float()
        chosen = predicted.gather(1, targets[1:, None])[:, 0]
        sums.append((predicted.logsumexp(1) - chosen).sum(dtype=torch.float64))
    return torch.stack(sums)


def _looked_up(losses: Float[Tensor, "predictions vocab"], tokens: Int[Tensor, "rows ctx"]) -> Float[Tensor, " rows"]:
    targets = tokens[:, 1:].to(losses.device, torch.long)
    return losses.double().gather(1, targets.T).sum(0)


def losses_in_pieces(
    states: Float[Tensor, "tokens d_model"], unembedding: Unembedding, targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Returns each token's cross-entropy; logits are made for a few tokens at a time and overwritten in place."""
    vocab = unembedding.W_U.shape[1]
    size = min(len(states), max(MIN_PIECE, PIECE_LOGITS // vocab))
    logits_of_all = states.new_empty(size, vocab)
    losses = []
    for piece, chosen in zip(states.split(size), targets.split(size), strict=True):
        logits = unembedding.logits(piece, logits_of_all).float()
        of_target = logits.gather(1, chosen[:, None])[:, 0]
        largest = logits.amax(1, keepdim=True)
        log_sum = logits.sub_(largest).exp_().sum(1).log_()
        losses.append(log_sum.add_(largest[:, 0]).sub_(of_target))
    return torch.cat(losses)


def import_transformer_lens() -> None:
    """Imports what `LanguageModel` needs, some seconds' work; worth a thread of its own while something else is waited for."""
    with quiet_loading(offline=True):
        import transformer_lens.model_bridge  # noqa: F401  # imported for the next import's sake


def _boot(config: ActivationConfig, info: ModelInfo, device: torch.device) -> Any:
    """Returns the TransformerBridge; weights are processed in float32 and only then rounded."""
    weight_files(info.folder)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("a GPU was asked for, but torch finds none on this machine; ask for no GPU, or run where there is one")
    with quiet_loading(offline=True):
        from transformer_lens.model_bridge import TransformerBridge

        try:
            bridge = TransformerBridge.boot_transformers(str(info.folder), device=str(device), tokenizer=_stand_in_tokenizer())
            if config.compatibility_mode:
                bridge.enable_compatibility_mode()
        except torch.cuda.OutOfMemoryError as error:
            raise SurroundingsError(
                f"{info.name} does not fit on the GPU ({error}); free the GPU or choose a smaller model"
            ) from error
        except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
            message = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"TransformerLens cannot load activations.model {info.name}: {message}") from error
    bridge.eval()
    bridge.requires_grad_(False)
    if config.lm_precision != "float32":
        bridge.to(getattr(torch, config.lm_precision))
    return bridge


def _stand_in_tokenizer() -> Any:
    """Returns a tokenizer that nobody uses: rows come as ids, and a Llama folder without one does not boot otherwise."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    word = "<s>"
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({word: 0}, unk_token=word)), eos_token=word)


def _unknown_hook(config: ActivationConfig, names: list[str]) -> str:
    close = difflib.get_close_matches(config.hook_name, names, n=4, cutoff=0.4)
    near = f"; did you mean {' or '.join(close)}?" if close else "; names look like blocks.0.hook_resid_pre"
    return f"activations.hook_name {config.hook_name!r} is not a hook of {config.model}{near}"
