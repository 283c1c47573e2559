"""One training step, sparse beside dense beside the one product that neither can avoid, and on request beside other libraries.

Random data, several batches, everything interleaved in one run; medians. Every step is a whole one: gradients, decoder
projection, Adam, renormalisation, firing counts.
"""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from prolu_tune.bench.options import CLOCKS, Options, check_device, make_parser, show
from prolu_tune.bench.peers.client import Peer
from prolu_tune.config.names import NONLINEARITIES, PENALTIES
from prolu_tune.config.trial import SaeConfig, TrainingConfig
from prolu_tune.errors import InputError
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.training.numerics import keep_freed_memory
from prolu_tune.training.optimizer import Adam, update
from prolu_tune.training.paths import sparse_path
from prolu_tune.training.step import StepStats, dense_gradients

NUM_BATCHES = 3
"""Different inputs, taken in turn, so that it is not a cache that is measured."""
PEERS = {"saelens": "step_saelens.py", "dictionary_learning": "step_dictionary_learning.py"}

Step = Callable[[int], float]
"""Makes a step on the batch of this number and returns its seconds."""


def main() -> None:
    """Prints a table, or with `--json` one line of JSON.

    Raises:
        InputError: if the device, the density or the other libraries are not to be had.
    """
    options = parser().parse_args(namespace=StepOptions())
    show(measure(options), as_json=options.json)


class StepOptions(Options):
    """The shared flags and this measurement's own."""

    nonlinearity: str
    penalty: str
    peers: bool


def parser() -> argparse.ArgumentParser:
    """Returns the parser of this measurement's flags."""
    made = make_parser("step", __doc__, threads=torch.get_num_threads(), d_in=768, d_sae=12288, batch=4096, l0=64.0, steps=5)
    made.add_argument("--nonlinearity", choices=NONLINEARITIES, default="prolu_ste")
    made.add_argument("--penalty", choices=PENALTIES, default="l1")
    made.add_argument(
        "--peers", action="store_true", help="SAELens and dictionary_learning beside it, on ReLU and L1 as theirs"
    )
    return made


def measure(options: StepOptions) -> dict[str, float | int | str]:
    """Returns the medians in seconds, their ratios, and what was measured.

    Raises:
        InputError: if the device or the other libraries are not there, or no l0 of that size.
        SurroundingsError: if a library's process dies.
    """
    check_device(options.device)
    if not 0 < options.l0 < options.d_sae:
        raise InputError(f"--l0 must lie between 0 and --d-sae {options.d_sae}, got {options.l0:g}")
    if options.peers:
        options.nonlinearity, options.penalty = "relu", "l1"
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    # As in training.
    keep_freed_memory()
    sae = make_autoencoder(options, device)
    batches = [sae.normalize(torch.randn(options.batch, options.d_in)).x.to(device) for _ in range(NUM_BATCHES)]
    set_l0(sae, batches[0], options.l0)
    steps, train = _our_steps(sae, batches, options)
    versions: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        if options.peers:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for name, (step, version) in _peers(stack, folder, sae, batches, options).items():
                steps[f"{name}_s_per_step"] = step
                versions[f"{name}_version"] = version
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(options.steps + 1):
            for name, step in steps.items():
                seconds[name].append(step(number % NUM_BATCHES))
    medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    ratios = {
        f"{name.removesuffix('_s_per_step')}_over_sparse": value / medians["s_per_step"]
        for name, value in medians.items()
        if name not in ("s_per_step", "product_s")
    }
    return {
        **medians,
        **ratios,
        "sparse_over_product": medians["s_per_step"] / medians["product_s"],
        "tokens_per_s": options.batch / medians["s_per_step"],
        "l0": train().fired.sum().item() / options.batch,
        **{name: getattr(options, name) for name in ("d_in", "d_sae", "batch", "steps", "threads", "nonlinearity", "penalty")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "clock": options.clock,
        "torch": torch.__version__,
        **versions,
    }


def _our_steps(
    sae: SparseAutoencoder, batches: list[Tensor], options: StepOptions
) -> tuple[dict[str, Step], Callable[[], StepStats]]:
    """Returns what is timed of ours, by name, and the sparse step on the first batch."""
    device = torch.device(options.device)
    path = sparse_path(sae, device)
    if path is None:
        raise InputError(f"there is no sparse step on {options.device} here: it needs torch with MKL, or Triton on a GPU")
    product = torch.empty(options.batch, options.d_sae, device=device)
    adam = Adam(sae, TrainingConfig(), eps=1e-5)
    # Costs the same as any other, and keeps L0 where it is.
    adam.lr = 0.0

    def train(gradients: Callable[..., StepStats], change: Callable[[SparseAutoencoder, Adam], None], x: Tensor) -> StepStats:
        stats = gradients(sae, x, l1_coefficient=1e-3)
        change(sae, adam)
        return stats

    def clocked(run: Callable[[Tensor], object]) -> Step:
        return lambda number: timed(lambda: run(batches[number]), options.clock, device)

    steps = {
        "s_per_step": clocked(lambda x: train(path.gradients, path.update, x)),
        "dense_s_per_step": clocked(lambda x: train(dense_gradients, update, x)),
        "product_s": clocked(lambda x: torch.mm(x, sae.W_enc.detach(), out=product)),
    }
    return steps, lambda: train(path.gradients, path.update, batches[0])


def _peers(
    stack: contextlib.ExitStack, folder: Path, sae: SparseAutoencoder, batches: list[Tensor], options: StepOptions
) -> dict[str, tuple[Step, str]]:
    """Returns each library's step and version; their processes end with the stack. They get our weights and batches."""
    if options.device != "cpu":
        raise InputError(f"--peers measures on the CPU only, --device is {options.device}; leave one of them out")
    from safetensors.torch import save_file

    data = {name: tensor.detach().clone() for name, tensor in sae.named_parameters()}
    save_file(data | {f"x{i}": x for i, x in enumerate(batches)}, folder / "data.safetensors")
    found = {}
    for name, script in PEERS.items():
        arguments = [str(folder / "data.safetensors"), "--threads", str(options.threads)]
        peer = stack.enter_context(Peer(script, arguments, threads=options.threads))
        found[name] = (_asking(peer, options.clock), peer.ready["version"])
    return found


def _asking(peer: Peer, clock: str) -> Step:
    return lambda number: peer.ask({"batch": number, "clock": clock})["seconds"]


def timed(run: Callable[[], object], clock: str, device: torch.device) -> float:
    """Returns the seconds that a call takes by a clock of `CLOCKS`; on a GPU by events."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    began = CLOCKS[clock]()
    run()
    return CLOCKS[clock]() - began


def make_autoencoder(options: StepOptions, device: torch.device) -> SparseAutoencoder:
    """Returns a random autoencoder whose gates can be set by their biases alone."""
    config = SaeConfig(nonlinearity=options.nonlinearity, penalty=options.penalty)
    generator = torch.Generator().manual_seed(0)
    operands = torch.bfloat16 if device.type == "cuda" else torch.float32
    sae = SparseAutoencoder(config, options.d_in, options.d_sae, generator=generator, operands=operands)
    with torch.no_grad():
        # Wide enough that any gate can be set by its bias; ProLU gates also need pre > 0, so at most half are open.
        sae.W_enc.normal_(generator=generator).div_(options.d_in**0.5)
    return sae.to(device)


def set_l0(sae: SparseAutoencoder, x: Tensor, l0: float) -> None:
    """Sets one bias for all latents so that about l0 of them are active on a token."""
    with torch.no_grad():
        sample = (x[:256] @ sae.W_enc).flatten()
        rank = max(1, round((1 - l0 / sae.d_sae) * len(sample)))
        sae.b_enc.fill_(-sample.kthvalue(rank).values)


if __name__ == "__main__":
    main()
