"""What decides the bits besides the configuration: seeds, threads, precision flags, and their signature."""

import ctypes
import hashlib
import platform

import torch

from prolu_tune.config.trial import TrainingConfig
from prolu_tune.errors import InputError


def seeded_generator(purpose: str, *numbers: int) -> torch.Generator:
    """Returns a CPU generator that depends on a purpose and numbers (a seed, a step) alone.

    So randomness needs no state in a checkpoint, and draws are the same on every device.
    """
    digest = hashlib.sha256("/".join([purpose, *map(str, numbers)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def set_numerics(training: TrainingConfig, device: torch.device) -> None:
    """Sets threads and precision flags of this process as the configuration says.

    Raises:
        InputError: if the configuration asks for what the device cannot do.
    """
    if device.type == "cpu":
        if training.precision == "bfloat16":
            raise InputError("training.precision is bfloat16, which needs a GPU; this trial runs on the CPU: set float32")
        torch.set_num_threads(training.num_threads)
        keep_freed_memory()
        return
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device} was asked for, but torch {torch.__version__} sees no GPU here; use cpu")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def keep_freed_memory() -> bool:
    """Returns whether the C library was told to keep freed memory for this process instead of returning it each time.

    Every step allocates and frees arrays of batch x d_sae. glibc asks the kernel for fresh pages each time; clearing
    them took 80 % of an addition of two 200 MB arrays, and a fifth of a whole step at 128 x 1,024 (two-core EPYC).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # The numbers are glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD; the second alone would make it worse.
    largest = 2**31 - 1
    return mallopt(-3, largest) == 1 and mallopt(-1, largest) == 1


def numerics_signature(training: TrainingConfig, device: torch.device) -> dict[str, str]:
    """Returns what must be equal for two runs to agree in every bit, configuration aside."""
    signature = {
        "torch": torch.__version__,
        "device": device.type,
        "precision": training.precision,
        "adam": "fused",
    }
    if device.type == "cpu":
        return signature | {
            "threads": str(training.num_threads),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(),
        }
    properties = torch.cuda.get_device_properties(device)
    return signature | {
        "gpu": properties.name,
        "multiprocessors": str(properties.multi_processor_count),
        "cuda": str(torch.version.cuda),
    }
