"""Batches on their way to a GPU: the next ones are copied there while the present one is trained on."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

AHEAD = 2
"""Batches that wait on the device; one of 4,096 x 768 in float16 has 6 MB."""

Arrive = Callable[[], Tensor]
"""Returns a batch that was sent, ready for the work that its caller queues next."""


def prefetched(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Returns the batches on the device, in the same order; on a CPU the very iterator, whose batches are in memory as it is.

    A batch is part of a memory-mapped file. Copied from there to a GPU, it would keep host and device waiting for about
    as long as a sparse step takes; so a thread copies it to pinned memory, and the device fetches it beside its work.
    """
    return ahead(batches, _PinnedCopies(device)) if device.type == "cuda" else batches


def ahead(batches: Iterator[Tensor], send: Callable[[Tensor], Arrive], *, count: int = AHEAD) -> Iterator[Tensor]:
    """Yields what has arrived, in order, while a thread sends up to `count` batches more.

    What reading or sending raises is raised here, in its turn. The thread ends with the iterator.
    """
    sent: queue.Queue[Arrive | BaseException | None] = queue.Queue(count)
    over = threading.Event()

    def put(answer: Arrive | BaseException | None) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                sent.put(answer, timeout=0.1)
                return

    def run() -> None:
        try:
            for batch in batches:
                put(send(batch))
                if over.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the reader, whatever it is
            put(error)

    threading.Thread(target=run, daemon=True, name="prefetch").start()
    try:
        while (answer := sent.get()) is not None:
            if isinstance(answer, BaseException):
                raise answer
            yield answer()
    finally:
        over.set()


class _PinnedCopies:
    """Copies batches into pinned memory and from there, on a stream of their own, to a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pinned = torch.empty(0)
        self._fetched = torch.cuda.Event()

    def __call__(self, batch: Tensor) -> Arrive:
        if self._pinned.shape != batch.shape:
            self._pinned = torch.empty_like(batch, pin_memory=True)
        # The batch before this one may still be on its way out of the same memory.
        self._fetched.synchronize()
        self._pinned.copy_(batch)
        with torch.cuda.stream(self._stream):
            there = self._pinned.to(self._device, non_blocking=True)
            fetched = self._fetched = torch.cuda.Event()
            fetched.record(self._stream)

        def arrive() -> Tensor:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(fetched)
            # Its memory belongs to the copying stream and must not be used again before this one is done with it.
            there.record_stream(stream)
            return there

        return arrive
