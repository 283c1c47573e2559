import os
import subprocess
import sys

import pytest
import torch

from prolu_tune.config.trial import TrainingConfig
from prolu_tune.errors import InputError
from prolu_tune.training import numerics
from prolu_tune.training.numerics import numerics_changes, numerics_signature, seeded_generator, set_numerics

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
    signatures = []
    try:
        for threads in (1, 2):
            training = TrainingConfig(num_threads=threads)
            set_numerics(training, CPU)
            assert torch.get_num_threads() == threads
            signatures.append(numerics_signature(training, CPU))
    finally:
        torch.set_num_threads(before)
    assert signatures[0] | {"threads": "2"} == signatures[1] != signatures[0]


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


def test_the_signature_names_the_processor_and_what_chooses_its_code(monkeypatch: pytest.MonkeyPatch):
    signature = numerics_signature(TrainingConfig(), CPU)
    assert {"torch", "cpu", "cpu_capability", "blas", "threads", "adam", "tf32"} <= signature.keys()
    assert all(signature.values())
    numerics._blas.cache_clear()
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    other = numerics_signature(TrainingConfig(), CPU)
    numerics._blas.cache_clear()
    assert "MKL_CBWR=COMPATIBLE" in numerics_changes(signature, other)


def test_changes_name_every_key_with_both_values():
    assert numerics_changes({"a": "1", "b": "2"}, {"a": "1", "b": "2"}) == ""
    assert (
        numerics_changes({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4", "d": "5"}) == "b 2 -> 4, c 3 -> None, d None -> 5"
    )


def test_threads_come_from_the_configuration_whatever_ray_puts_into_the_environment():
    """Ray sets OMP_NUM_THREADS from a trial's CPUs; two threads give other bits than one."""
    code = (
        "import hashlib, sys, torch; from prolu_tune.config.trial import TrainingConfig;"
        "from prolu_tune.training.numerics import set_numerics;"
        "set_numerics(TrainingConfig(num_threads=int(sys.argv[1])), torch.device('cpu'));"
        "g = torch.Generator().manual_seed(0); a, b = (torch.randn(n, n, generator=g) for n in (300, 300));"
        "print(torch.get_num_threads(), hashlib.sha256((a @ b).sum(0).numpy().tobytes()).hexdigest())"
    )

    def run(threads: str, omp: str) -> str:
        environment = os.environ | {"OMP_NUM_THREADS": omp, "MKL_NUM_THREADS": omp}
        done = subprocess.run(
            [sys.executable, "-c", code, threads], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    with_one = run("2", "1")
    assert with_one.startswith("2 ")
    assert with_one == run("2", "2")
