import itertools
import threading
import time

import pytest
import torch

from prolu_tune.training.prefetch import ahead, prefetched


def _batches(count):
    return (torch.full((4, 3), float(i), dtype=torch.float16) for i in range(count))


def _sent(batch):
    return lambda: batch.float()


def _threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def _wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_on_a_cpu_nothing_is_done():
    batches = _batches(3)
    assert prefetched(batches, torch.device("cpu")) is batches


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_all_arrive_in_order(count):
    assert [batch[0, 0].item() for batch in ahead(_batches(count), _sent)] == list(range(count))
    _wait_for(lambda: not _threads())


def test_no_more_are_read_ahead_than_asked_for():
    read = []
    stream = ahead((read.append(i) or torch.zeros(1) for i in itertools.count()), _sent, count=2)
    next(stream)
    # One is used, two wait, one is in the thread's hands.
    _wait_for(lambda: len(read) == 4)
    time.sleep(0.3)
    assert len(read) == 4
    stream.close()
    _wait_for(lambda: not _threads())


@pytest.mark.parametrize("where", ["reading", "sending"])
def test_an_error_comes_in_its_turn(where):
    def batches():
        yield torch.zeros(1)
        if where == "reading":
            raise OSError("no chunk")
        yield torch.ones(1)

    def send(batch):
        if batch.sum():
            raise OSError("no memory")
        return lambda: batch

    stream = ahead(batches(), send)
    assert next(stream).sum() == 0
    with pytest.raises(OSError, match="no chunk" if where == "reading" else "no memory"):
        next(stream)
    _wait_for(lambda: not _threads())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_same_values_arrive():
    device = torch.device("cuda")
    seen = []
    for batch in prefetched(_batches(50), device):
        torch.cuda._sleep(10_000_000)
        seen.append(batch.float().mean())
    assert torch.stack(seen).tolist() == list(range(50))
