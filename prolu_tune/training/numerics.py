"""What decides the bits besides the configuration: seeds, threads, precision flags, and their signature."""

import ctypes
import functools
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from prolu_tune.config.trial import TrainingConfig
from prolu_tune.errors import InputError

BLAS_SWITCHES = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE")
"""Environment variables that choose another code path on the same processor."""


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
    # Same bits from run to run; read when cuBLAS starts. Of the operations used here none has only a version with atomics.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
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


def share_one_heap() -> bool:
    """Returns whether the C library was told to serve all threads of this process from one heap.

    It would give each of a server's threads one of its own, none of which shrinks: the language-model process of a
    38-trial sweep on SmolLM2 grew from 2.2 to 3.7 GB, and 32 evaluations on the bundled model in threads of their own
    ended at 936 MB instead of 719 MB, no slower (22 November 2026).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(-8, 1) == 1  # glibc's M_ARENA_MAX


def numerics_signature(training: TrainingConfig, device: torch.device) -> dict[str, str]:
    """Returns what must be equal for two runs to agree in every bit, configuration aside; each value as a string."""
    signature = {
        "torch": torch.__version__,
        "device": device.type,
        "precision": training.precision,
        "adam": "fused",
        "tf32": f"{torch.backends.cuda.matmul.allow_tf32}",
        "bf16_reduction": f"{torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction}",
    }
    if device.type == "cpu":
        return signature | {
            "threads": str(torch.get_num_threads()),
            "cpu": cpu_model(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(),
            "blas": _blas(),
        }
    properties = torch.cuda.get_device_properties(device)
    return signature | {
        "gpu": properties.name,
        "multiprocessors": str(properties.multi_processor_count),
        "cuda": str(torch.version.cuda),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "default"),
        "triton": _version("triton"),
        "driver": _gpu_driver(),
    }


def numerics_changes(before: dict[str, str], now: dict[str, str]) -> str:
    """Returns what differs between two signatures, such as `threads 1 -> 2`; an empty text if nothing does."""
    keys = sorted(before.keys() | now.keys())
    return ", ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key))


@functools.cache
def cpu_model() -> str:
    """Returns the processor's name, by which the libraries choose their code; where the system does not tell, a weaker one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


@functools.cache
def _blas() -> str:
    built = torch.__config__.show().splitlines()
    lines = (line.strip(" -") for line in built if "Math Kernel Library" in line or "OpenBLAS" in line or "MKL-DNN" in line)
    chosen = [f"{name}={os.environ[name]}" for name in BLAS_SWITCHES if name in os.environ]
    return "; ".join([*lines, *chosen])


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


@functools.cache
def _gpu_driver() -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
