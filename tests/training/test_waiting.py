"""Nothing in the training loop makes a GPU's host wait for the device: seen on the CPU, by the operations that would."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.trial import ResamplingConfig, SaeConfig, TrainingConfig, TrialConfig
from prolu_tune.training.state import Trainer


class _Waiting(TorchDispatchMode):
    """Notes the operations after which a GPU's host would have to wait for the device."""

    WAITS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2", "item"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["relu+l1", "prolu_ste+sqrt_l1"])
def test_between_two_rows_nothing_waits_for_the_device(architecture: str) -> None:
    nonlinearity, penalty = architecture.split("+")
    config = TrialConfig(
        sae=SaeConfig(nonlinearity=nonlinearity, penalty=penalty, d_sae=32),
        # The dense step. A GPU's sparse one waits for the count of its entries, with work still queued behind it.
        training=TrainingConfig(num_tokens=64 * 12, batch_size=64, sparse_step=False, log_every=4),
        resampling=ResamplingConfig(steps=()),
    )
    trainer = Trainer(config, plan_trial(config, d_in=8))
    batches = iter(torch.randn(64, 8).half() for _ in range(12))
    with _Waiting() as waiting:
        for _ in range(8):
            trainer.train_step(trainer.next_batch(batches))
            trainer.row_due()
        assert waiting.seen == []
        trainer.row()
        assert waiting.seen, "reading a row does wait, so this test would see it"
