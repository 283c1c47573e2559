import subprocess
import sys

import pytest
import torch

from prolu_tune.config.trial import TrainingConfig
from prolu_tune.errors import InputError
from prolu_tune.training.numerics import numerics_signature, seeded_generator, set_numerics

CPU = torch.device("cpu")


def test_generators_depend_on_purpose_and_numbers_alone():
    def draw(*key) -> float:
        return torch.rand((), generator=seeded_generator(*key)).item()

    assert draw("resampling", 1, 20) == draw("resampling", 1, 20)
    assert (
        len({draw("resampling", 1, 20), draw("resampling", 12, 0), draw("resampling", 1, 21), draw("initialisation", 1, 20)})
        == 4
    )


def test_bfloat16_on_the_cpu_is_refused():
    with pytest.raises(InputError, match="needs a GPU"):
        set_numerics(TrainingConfig(precision="bfloat16"), CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_where_there_is_none_is_refused():
    with pytest.raises(InputError, match="sees no GPU"):
        set_numerics(TrainingConfig(), torch.device("cuda"))


def test_threads_are_set_and_part_of_the_signature():
    before = torch.get_num_threads()
    try:
        set_numerics(TrainingConfig(num_threads=2), CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert numerics_signature(TrainingConfig(num_threads=2), CPU) != numerics_signature(TrainingConfig(num_threads=1), CPU)


def test_a_trainer_starts_without_importing_torchs_compiler():
    """It would cost every trial process a second."""
    code = (
        "import sys; from prolu_tune.config.resolve import plan_trial; from prolu_tune.config.trial import TrialConfig;"
        "from prolu_tune.training.state import Trainer; import torch;"
        "config = TrialConfig.model_validate({'sae': {'d_sae': 8}, 'resampling': {'steps': []}});"
        "trainer = Trainer(config, plan_trial(config, d_in=4)); trainer.train_step(torch.ones(3, 4)); trainer.row();"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
