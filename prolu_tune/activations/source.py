"""Where a node's activations come from: rows, language model and chunk store put together; one per node."""

import platform
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prolu_tune.activations.cache import FLOAT16_MAX, ChunkStore, chunk_name, ignore
from prolu_tune.activations.digests import digest_of
from prolu_tune.activations.documents import Progress
from prolu_tune.activations.language_model import LanguageModel
from prolu_tune.activations.model_info import describe_model, residual_width
from prolu_tune.activations.rows import TokenRows, open_rows
from prolu_tune.activations.stream import StreamLayout, plan_layout, token_order
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError

FORMAT_VERSION = 1


class ActivationSource:
    """Makes chunks of activations on a node, each at most once while it stays in the cache.

    The language model is loaded when the first chunk has to be made, and not at all if the cache holds everything.
    """

    def __init__(
        self,
        config: ActivationConfig,
        *,
        cache_dir: Path,
        device: str = "cpu",
        progress: Progress | None = None,
        say: Callable[[str], None] = ignore,
    ) -> None:
        """Opens the data set; local text is tokenised here at the first use on a node.

        Args:
            config: model, hook, data.
            cache_dir: folder for chunks, tokenised rows and baselines; may be shared by sources of any configuration.
            device: where the language model runs.
            progress: told bytes done and in all while local text is tokenised.
            say: told what a person should know, such as a damaged file.

        Raises:
            InputError: if model, hook, data or cache size do not fit.
            SurroundingsError: if the hub or the disk fails.
        """
        self.config = config
        self.device = device
        self.cache_dir = cache_dir
        self.say = say
        self.tokens_produced = 0
        """Tokens of the training stream that have passed through the language model so far."""
        self._lock = threading.RLock()
        self._model: LanguageModel | None = None
        self.info = describe_model(config)
        self.rows: TokenRows = open_rows(config, self.info, cache_dir=cache_dir, progress=progress, say=say)
        d_in = residual_width(config, self.info)
        self.layout: StreamLayout = plan_layout(self.rows, config, d_in=self.language_model.d_in if d_in is None else d_in)
        self.fingerprint = self._fingerprint()
        self.store = ChunkStore(cache_dir / "chunks", self.fingerprint, max_bytes=int(config.cache_gb * 1e9))
        self.store.check_size(self.layout.chunk_bytes)

    @property
    def d_in(self) -> int:
        """Width of the hook."""
        return self.layout.d_in

    @property
    def language_model(self) -> LanguageModel:
        """The language model, loaded at the first use."""
        with self._lock:
            if self._model is None:
                self._model = LanguageModel(self.config, device=self.device, info=self.info)
            return self._model

    @property
    def tokens_processed(self) -> int:
        """Tokens that have passed through the language model so far, for whatever purpose; does not load it."""
        return 0 if self._model is None else self._model.tokens_processed

    def ensure(self, chunk: int) -> Path:
        """Returns the file of a chunk of the training stream, made if it is missing.

        Raises:
            InputError: if the data end before it or the hook's values cannot be stored.
            SurroundingsError: if the disk or the hub fails.
        """
        return self.store.ensure(chunk_name(chunk), lambda: self._produce(chunk))

    def has(self, chunk: int) -> bool:
        """Returns whether a chunk is in the cache."""
        return self.store.find(chunk_name(chunk)) is not None

    def _produce(self, chunk: int) -> np.ndarray:
        """Returns the activations (chunk_tokens, d_in) of a chunk, float16, in their shuffled places."""
        layout, config = self.layout, self.config
        epoch, start = layout.rows_of(chunk)
        if epoch >= config.epochs:
            raise InputError(
                f"chunk {chunk} lies in pass {epoch + 1} over the training rows of {config.dataset}, but activations.epochs is "
                f"{config.epochs}; raise it or lower training.num_tokens"
            )
        tokens = self.rows.take("train", epoch=epoch, start=start, count=layout.rows_per_chunk)
        places = torch.from_numpy(token_order(layout, config, chunk)).reshape(layout.rows_per_chunk, layout.tokens_per_row)
        out = np.empty((layout.chunk_tokens, layout.d_in), np.float16)
        model, target = self.language_model, torch.from_numpy(out)
        for low in range(0, len(tokens), config.lm_batch_size):
            rows = torch.from_numpy(tokens[low : low + config.lm_batch_size])
            kept = model.activations(rows)[:, config.context_length - layout.tokens_per_row :]
            target[places[low : low + len(rows)].flatten()] = self.to_float16(kept).flatten(0, 1).cpu()
            self.tokens_produced += rows.numel()
        return out

    def to_float16(self, activations: torch.Tensor) -> torch.Tensor:
        """Returns activations in float16.

        Raises:
            InputError: if a value is not finite or too large.
        """
        largest = activations.abs().max().item()
        if not largest <= FLOAT16_MAX:
            raise InputError(
                f"activations of {self.config.hook_name} of {self.config.model} reach {largest:g}, but the cache is float16, "
                f"which ends at {FLOAT16_MAX:,.0f}; choose another hook"
            )
        return activations.half()

    def content(self) -> dict[str, Any]:
        """Returns what the activations of single rows depend on: model, hook, data, numerics."""
        config = self.config
        return {
            "format": FORMAT_VERSION,
            "model": self.info.identity(memo=self.cache_dir / "digests"),
            "hook_name": config.hook_name,
            "compatibility_mode": config.compatibility_mode,
            "data": self.rows.shards.identity,
            "seed": config.seed,
            "lm_batch_size": config.lm_batch_size,
            "lm_precision": config.lm_precision,
            "machine": _machine(self.device, config.lm_threads),
        }

    def _fingerprint(self) -> str:
        """Returns the SHA-256 of all that chunk i depends on besides i."""
        layout = self.layout
        stream = {
            "train_range": list(self.config.train_range),
            "rows_per_chunk": layout.rows_per_chunk,
            "tokens_per_row": layout.tokens_per_row,
            "chunks_per_epoch": None if self.rows.shards.streamed else layout.chunks_per_epoch,
        }
        return digest_of({**self.content(), **stream})


def _machine(device: str, threads: int) -> dict[str, Any]:
    """Returns what else decides the bits of a forward pass."""
    libraries = {name: version(name) for name in ("torch", "transformers", "transformer_lens", "numpy")}
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(torch.device(device))
        return {
            **libraries,
            "gpu": properties.name,
            "num_sms": properties.multi_processor_count,
            "cuda": str(torch.version.cuda),
        }
    capability = torch.backends.cpu.get_cpu_capability()
    return {**libraries, "cpu": _cpu_name(), "capability": capability, "threads": threads}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
