"""The layers after a hook alone: the blocks before it are passed over while given activations take their place."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Names of the hook points themselves; `hook_resid_pre` and `hook_resid_post` are TransformerLens's aliases for them.
BLOCK_HOOK = re.compile(r"blocks\.(\d+)\.(hook_in|hook_resid_pre|hook_out|hook_resid_post)")


class Unembedding(NamedTuple):
    """The product with the vocabulary, taken out of the model so that it can be made in pieces."""

    W_U: Float[Tensor, "d_model vocab"]
    bias: Float[Tensor, " vocab"]

    def logits(self, states: Float[Tensor, "tokens d_model"], out: Tensor) -> Float[Tensor, "tokens vocab"]:
        """Returns the logits, written into the first rows of `out`."""
        return torch.addmm(self.bias, states, self.W_U, out=out[: len(states)])


class _FinalStatesError(Exception):
    """Leaves the forward pass with what arrived at the unembedding."""


class SuffixPass:
    """Turns a bridge's forward pass into one of the layers after a residual-stream hook, for a while.

    Embeddings, masks and rotary angles are computed as always; blocks before the hook hand their input on, the last
    of them hands on the given activations.
    """

    def __init__(self, bridge: Any, hook: str) -> None:
        """Args:
        bridge: a TransformerBridge.
        hook: the hook point's own name.
        """
        found = BLOCK_HOOK.fullmatch(hook)
        self._blocks: list[Any] = []
        if found is not None and hasattr(bridge, "blocks"):
            after = found.group(2) in ("hook_out", "hook_resid_post")
            self._blocks = list(bridge.blocks)[: int(found.group(1)) + after]
        self._as_tuple: bool | None = None
        self.possible = bool(self._blocks)
        """Whether there is anything to pass over; False also after `observed` saw a block that cannot be imitated."""
        self.checked: bool | None = None
        """Whether the shortened pass gave the full pass's losses; None: not compared yet."""
        self._unembed = getattr(bridge, "unembed", None)
        self.unembedding: Unembedding | None = None
        """Set once `find_unembedding` saw that this product, and nothing else, makes the logits."""

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """Watches a full pass inside the block to learn in which form blocks hand on their output."""

        def watch(_module: object, _inputs: object, output: Any) -> None:
            if isinstance(output, tuple):
                self._as_tuple = True
                self.possible = len(output) == 1
            else:
                self._as_tuple = False
                self.possible = isinstance(output, Tensor)

        handle = self._blocks[0].register_forward_hook(watch)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def injected(self, activations: Float[Tensor, "rows ctx d_in"]) -> Iterator[None]:
        """Forward passes inside the block go on from these activations at the hook."""
        # Straight into the instance: a bridge's own __setattr__ would hand the name on to the module it wraps.
        for block in self._blocks[:-1]:
            block.__dict__["forward"] = self._hand_on
        self._blocks[-1].__dict__["forward"] = lambda *args, **kwargs: self._formed(activations)
        try:
            yield
        finally:
            for block in self._blocks:
                del block.__dict__["forward"]

    def _hand_on(self, *args: Any, **kwargs: Any) -> Any:
        return self._formed(args[0] if args else kwargs["hidden_states"])

    def _formed(self, tensor: Tensor) -> Any:
        return (tensor,) if self._as_tuple else tensor

    def find_unembedding(self, run: Callable[[], Tensor]) -> None:
        """Sets `unembedding` if the logits of a forward pass, which `run` makes, are its product and no more.

        Not so where a model caps or scales its logits, or has no component of that name.
        """
        W_U, b_U = getattr(self._unembed, "W_U", None), getattr(self._unembed, "b_U", None)
        if not isinstance(W_U, Tensor) or not isinstance(b_U, Tensor):
            return
        logits = run().flatten(0, -2)
        found, states = Unembedding(W_U.detach(), b_U.detach()), self.final_states(run)
        if states is None or states.dtype != W_U.dtype or (len(states), W_U.shape[1]) != logits.shape:
            return
        if torch.allclose(found.logits(states, torch.empty_like(logits)), logits, rtol=1e-4, atol=1e-5):
            self.unembedding = found

    def final_states(self, run: Callable[[], Tensor]) -> Float[Tensor, "tokens d_model"] | None:
        """Returns what arrives at the unembedding in a forward pass, which ends there; None if it does not come by."""
        found: list[Tensor] = []

        def stop(states: Tensor, *_args: object, **_kwargs: object) -> Tensor:
            found.append(states)
            raise _FinalStatesError

        assert self._unembed is not None
        self._unembed.__dict__["forward"] = stop
        try:
            run()
        except _FinalStatesError:
            return found[0].flatten(0, -2)
        finally:
            del self._unembed.__dict__["forward"]
        return None
