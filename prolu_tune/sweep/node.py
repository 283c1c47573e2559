"""What a node has once, whatever number of trials it runs: language model, chunk store, evaluation.

`NodeServer` is a plain class; `worker` makes one Ray actor of it per node. Trials ask it for chunks, which they then
read from memory-mapped files, and for the evaluation of their SAE.
"""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prolu_tune.activations.language_model import import_transformer_lens
from prolu_tune.activations.source import ActivationSource
from prolu_tune.activations.stream import StreamLayout, check_enough
from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.evaluation import Baseline, EvaluationData, evaluate_sae, measure_baseline
from prolu_tune.results.places import scratch_folder
from prolu_tune.sae.folder import load_sae_folder
from prolu_tune.sweep.settings import NodeSettings, WorkerSettings
from prolu_tune.sweep.shared import check_storage

Work = tuple[str, int | None, int | None]
"""What is being made, how much of it is done, how much there is; an empty text: nothing."""


class NodeServer:
    """The activations of one node and what is computed with its language model. Calls come from several threads."""

    def __init__(self, settings: NodeSettings) -> None:
        """Starts nothing yet: an error in the data is told to whoever asks first, not to a constructor nobody waits for."""
        self._settings = settings
        self._opening = threading.Lock()
        self._evaluating = threading.Lock()
        self._source: ActivationSource | None = None
        self._data: EvaluationData | None = None
        self._baseline: Baseline | None = None
        self._notes: list[str] = []
        self._stopping = False
        self._host = socket.gethostname()
        self._work: Callable[[], Work] = _idle

    def describe(self) -> StreamLayout:
        """Returns how the stream is cut, the hook's width among it.

        Raises:
            InputError: if model, hook, data or cache size do not fit.
            SurroundingsError: if the hub or the disk fails.
        """
        return self._open().layout

    def check(self, num_tokens: int) -> None:
        """Checks that the data hold a run of `num_tokens` and something to evaluate on, and that the language model loads.

        Where its first chunk lies in the cache it has been loaded before: trials go on with what is there, and the first
        evaluation loads it. What the first trials will ask for is then begun in a thread, while their processes still start.

        Raises:
            InputError: with the numbers, or what the model lacks.
        """
        model = self._settings.activations.model
        self._work = lambda: (f"loading {model}", None, None)
        if not any(cache_folder(self._settings).glob("chunks/*")):
            threading.Thread(target=import_transformer_lens, daemon=True).start()
        try:
            source = self._open()
            check_enough(source.layout, self._settings.activations, num_tokens=num_tokens)
            self._data = EvaluationData(source, num_tokens=self._settings.evaluation.num_tokens)
            if not source.has(0):
                assert source.language_model.d_in == source.d_in, "the hook's width is what the layout was planned for"
        finally:
            self._work = _idle
        threading.Thread(target=self._begin, daemon=True).start()

    def ensure_chunk(self, chunk: int) -> str:
        """Returns the file of a chunk, made if it is missing."""
        source = self._open()
        if not source.has(chunk):
            before, length = source.tokens_produced, self._settings.activations.context_length
            text, total = f"activations, chunk {chunk}: sequences", source.layout.rows_per_chunk
            self._work = lambda: (text, (source.tokens_produced - before) // length, total)
        try:
            return str(source.ensure(chunk))
        finally:
            self._work = _idle

    def evaluate(self, sae_folder: str) -> dict[str, float]:
        """Returns an SAE's held-out metrics under the names of the record."""
        data, baseline = self._prepare_evaluation()
        sae = load_sae_folder(Path(sae_folder))
        with self._evaluating:
            measured = evaluate_sae(sae, data, baseline=baseline)
        measured["eval_tokens"] = measured.pop("tokens")
        return measured

    def tokens_processed(self) -> dict[str, int]:
        """Returns how many tokens have passed through the language model: of the training stream, and in all."""
        if self._source is None:
            return {"train": 0, "all": 0}
        return {"train": self._source.tokens_produced, "all": self._source.tokens_processed}

    def state(self) -> dict[str, Any]:
        """Returns what the server is at, for the screen, and what a person should know since the last call."""
        notes, self._notes = self._notes, []
        work, done, total = self._work()
        tokens = self.tokens_processed()
        return {
            "notes": notes,
            "work": work,
            "done": done,
            "total": total,
            "tokens": tokens,
            "host": self._host,
            "pid": os.getpid(),
        }

    def check_storage(self, settings: WorkerSettings) -> str | None:
        """Returns what a person should be told if this machine does not see the storage as the driver does, else None."""
        refusal = check_storage(settings.mirror_uri or settings.sweep_folder, settings.storage_token)
        return refusal and f"{self._host}: {refusal}"

    def stop(self) -> None:
        """Lets the trials of this node save and leave."""
        self._stopping = True

    def stopping(self) -> bool:
        """Returns whether the trials of this node shall save and leave."""
        return self._stopping

    def gpu_share(self, gpus_per_trial: float) -> float | None:
        """Returns the share of a GPU's memory that a trial may take, None where it has the GPU for itself or uses none.

        What the language model has taken, and the logits of one batch beside it, is not the trials' to share.
        """
        if self._settings.device != "cuda" or not 0 < gpus_per_trial < 1:
            return None
        import torch

        model, context = self._open().language_model, self._settings.activations.context_length
        total = torch.cuda.get_device_properties(0).total_memory
        taken = torch.cuda.memory_reserved(0) + 8 * model.loss_batch_size * context * model.vocab_size
        return trial_share(gpus_per_trial, total=total, taken=taken)

    def num_chunks(self, num_tokens: int) -> int:
        """Returns how many chunks a run of `num_tokens` reads."""
        return self._open().layout.num_chunks(num_tokens)

    def _open(self) -> ActivationSource:
        with self._opening:
            if self._source is None:
                self._source = ActivationSource(
                    self._settings.activations,
                    cache_dir=cache_folder(self._settings),
                    device=self._settings.device,
                    progress=self._tokenising,
                    say=self.note,
                )
            return self._source

    def _begin(self) -> None:
        try:
            self.ensure_chunk(0)
            self._prepare_evaluation()
        except (InputError, SurroundingsError):
            return  # the trial that asks for it is told

    def _prepare_evaluation(self) -> tuple[EvaluationData, Baseline]:
        source = self._open()
        with self._evaluating:
            if self._data is None:
                self._data = EvaluationData(source, num_tokens=self._settings.evaluation.num_tokens)
            if self._baseline is None:
                self._baseline = measure_baseline(self._data, progress=self._measuring)
            return self._data, self._baseline

    def note(self, text: str) -> None:
        """Keeps what a person should know until the driver asks for `state`; trials of this node use it too."""
        self._notes.append(text)

    def _tokenising(self, done: int, total: int) -> None:
        self._work = (lambda: ("tokenising the data, bytes", done, total)) if done < total else _idle

    def _measuring(self, done: int, total: int) -> None:
        self._work = lambda: ("losses without an autoencoder, tokens", done, total)


def cache_folder(settings: NodeSettings) -> Path:
    """Returns where this node keeps activations."""
    return scratch_folder() / "cache" if settings.cache_dir is None else Path(settings.cache_dir)


CONTEXT_BYTES = 512 * 2**20
"""Memory of a GPU that each process takes before it holds a tensor, and that no limit of torch's counts."""


def trial_share(gpus_per_trial: float, *, total: int, taken: int) -> float:
    """Returns the share of a GPU's memory that each trial may allocate so that all that fit by `gpus_per_trial` fit in fact.

    Args:
        gpus_per_trial: what a trial has been promised, below 1.
        total: bytes of the GPU.
        taken: bytes of it that the language model's process uses.

    Raises:
        InputError: if that leaves less than a tenth of a trial's promise.
    """
    trials = int(1 / gpus_per_trial)
    free = total - taken - (trials + 1) * CONTEXT_BYTES
    if free < 0.1 * total:
        raise InputError(
            f"the language model takes {taken / 1e9:.1f} of the GPU's {total / 1e9:.1f} GB, which leaves too little for "
            f"{trials} trials at once; raise resources.gpus_per_trial or lower activations.lm_batch_size"
        )
    return free / total / trials


def _idle() -> Work:
    return "", None, None
