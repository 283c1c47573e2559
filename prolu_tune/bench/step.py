"""One training step, sparse beside dense beside the one product that neither can avoid; random data, interleaved."""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from prolu_tune.config.names import NONLINEARITIES, PENALTIES
from prolu_tune.config.trial import SaeConfig, TrainingConfig
from prolu_tune.errors import InputError
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.training.numerics import keep_freed_memory
from prolu_tune.training.optimizer import Adam, project_decoder_gradient, renormalize_decoder
from prolu_tune.training.paths import sparse_path
from prolu_tune.training.step import StepStats, dense_gradients

NUM_BATCHES = 3
"""Different inputs, taken in turn, so that it is not a cache that is measured."""


def main() -> None:
    """Prints a table, or with `--json` one line of JSON.

    Raises:
        InputError: if the device or the density is not to be had.
    """
    options = _parser().parse_args(namespace=_Options())
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:>20}  {value:.4g}" if isinstance(value, float) else f"{name:>20}  {value}")


class _Options(argparse.Namespace):
    d_in: int
    d_sae: int
    batch: int
    l0: float
    steps: int
    device: str
    threads: int
    nonlinearity: str
    penalty: str
    clock: str
    json: bool


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m prolu_tune.bench step", description=__doc__)
    for name, default, what in (
        ("d-in", 768, "width of the hook"),
        ("d-sae", 12288, "number of latents"),
        ("batch", 4096, "activations per step"),
        ("steps", 5, "steps of each kind; medians are printed"),
        ("threads", torch.get_num_threads(), "CPU threads"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument("--l0", type=float, default=64.0, help="mean number of active latents")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nonlinearity", choices=NONLINEARITIES, default="prolu_ste")
    parser.add_argument("--penalty", choices=PENALTIES, default="l1")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for one thread on a busy machine")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    return parser


def measure(options: _Options) -> dict[str, float | int | str]:
    """Returns the medians in seconds, their ratios, and what was measured.

    Raises:
        InputError: if the device is not there, or no l0 of that size.
    """
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {options.device} was asked for, but torch {torch.__version__} sees no GPU here; use cpu")
    if not 0 < options.l0 < options.d_sae:
        raise InputError(f"--l0 must lie between 0 and --d-sae {options.d_sae}, got {options.l0:g}")
    torch.set_num_threads(options.threads)
    # As in training.
    keep_freed_memory()
    sae = _autoencoder(options, device)
    batches = [sae.normalize(torch.randn(options.batch, options.d_in)).x.to(device) for _ in range(NUM_BATCHES)]
    _set_l0(sae, batches[0], options.l0)
    path = sparse_path(sae, device)
    if path is None:
        raise InputError(f"there is no sparse step on {options.device} here: it needs torch with MKL, or Triton on a GPU")
    product = torch.empty(options.batch, options.d_sae, device=device)
    adam = Adam(sae, TrainingConfig(), eps=1e-5)
    # Costs the same as any other, and keeps L0 where it is.
    adam.lr = 0.0

    def train(gradients: Callable[..., StepStats], x: Tensor) -> StepStats:
        stats = gradients(sae, x, l1_coefficient=1e-3)
        assert sae.W_dec.grad is not None
        project_decoder_gradient(sae.W_dec.grad, sae.W_dec)
        adam.step()
        renormalize_decoder(sae.W_dec)
        return stats

    kinds: dict[str, Callable[[Tensor], object]] = {
        "s_per_step": lambda x: train(path.gradients, x),
        "dense_s_per_step": lambda x: train(dense_gradients, x),
        "product_s": lambda x: torch.mm(x, sae.W_enc.detach(), out=product),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for step in range(options.steps + 1):
        for name, run in kinds.items():
            seconds[name].append(_timed(run, batches[step % NUM_BATCHES], options.clock, device))
    medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    active = train(path.gradients, batches[0]).fired.sum().item()
    return {
        **medians,
        "dense_over_sparse": medians["dense_s_per_step"] / medians["s_per_step"],
        "sparse_over_product": medians["s_per_step"] / medians["product_s"],
        "tokens_per_s": options.batch / medians["s_per_step"],
        "l0": active / options.batch,
        **{name: getattr(options, name) for name in ("d_in", "d_sae", "batch", "steps", "threads", "nonlinearity", "penalty")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "clock": options.clock,
        "torch": torch.__version__,
    }


def _timed(run: Callable[[Tensor], object], x: Tensor, clock: str, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run(x)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    now = time.process_time if clock == "cpu" else time.perf_counter
    began = now()
    run(x)
    return now() - began


def _autoencoder(options: _Options, device: torch.device) -> SparseAutoencoder:
    config = SaeConfig(nonlinearity=options.nonlinearity, penalty=options.penalty)
    generator = torch.Generator().manual_seed(0)
    operands = torch.bfloat16 if device.type == "cuda" else torch.float32
    sae = SparseAutoencoder(config, options.d_in, options.d_sae, generator=generator, operands=operands)
    with torch.no_grad():
        # Wide enough that any gate can be set by its bias; ProLU gates also need pre > 0, so at most half are open.
        sae.W_enc.normal_(generator=generator).div_(options.d_in**0.5)
    return sae.to(device)


def _set_l0(sae: SparseAutoencoder, x: Tensor, l0: float) -> None:
    with torch.no_grad():
        sample = (x[:256] @ sae.W_enc).flatten()
        rank = max(1, round((1 - l0 / sae.d_sae) * len(sample)))
        sae.b_enc.fill_(-sample.kthvalue(rank).values)


if __name__ == "__main__":
    main()
