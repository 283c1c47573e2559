"""The evaluation of several autoencoders: ours against three passes of the language model for each of them.

The naive way is written out here: for every autoencoder and batch the clean loss, the loss with the reconstruction in
place, and the loss with zeros in place, each a whole pass. With `--peers` SAELens does it too, on the same tokens and
weights. Ours starts with an empty cache and measures more: sparsity, reconstruction, and the losses with BOS kept.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path

import torch

from prolu_tune.activations.language_model import LanguageModel
from prolu_tune.activations.model_info import describe_model
from prolu_tune.bench.options import CLOCKS, check_device, show
from prolu_tune.bench.peers.client import Peer
from prolu_tune.bench.source import SourceOptions, activation_config, fresh_source, source_parser
from prolu_tune.config.trial import SaeConfig
from prolu_tune.errors import InputError
from prolu_tune.evaluation import EvaluationData, evaluate_saes
from prolu_tune.sae.model import SparseAutoencoder


class EvaluateOptions(SourceOptions):
    """The flags of model and data and this measurement's own."""

    saes: int
    rounds: int
    peers: bool


def main() -> None:
    """Prints a table, or with `--json` one line of JSON.

    Raises:
        InputError: if the device, the model or SAELens is not to be had.
    """
    options = parser().parse_args(namespace=EvaluateOptions())
    show(measure(options), as_json=options.json)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of this measurement's flags."""
    made = source_parser("evaluate", __doc__, tokens=16_384, d_sae=1024, l0=32.0)
    made.add_argument("--saes", type=int, default=8, help="autoencoders")
    made.add_argument("--rounds", type=int, default=3, help="evaluations of each kind; medians are printed")
    made.add_argument("--peers", action="store_true", help="SAELens beside it")
    return made


def measure(options: EvaluateOptions) -> dict[str, float | int | str]:
    """Returns the medians in seconds, their ratios, and both ways' losses.

    Raises:
        InputError: if the device, the model or SAELens is not there.
        SurroundingsError: if SAELens's process dies.
    """
    check_device(options.device)
    now = CLOCKS[options.clock]
    if options.peers and options.device != "cpu":
        raise InputError(f"--peers measures on the CPU only, --device is {options.device}; leave one of them out")
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(fresh_source(options))
        saes = make_saes(options, source.d_in)
        rows = torch.from_numpy(EvaluationData(source, num_tokens=options.tokens).tokens.copy())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peer = stack.enter_context(_peer(folder, saes, rows, options)) if options.peers else None
        seconds: dict[str, list[float]] = {}
        ours: list[float] = []
        naive: list[float] = []
        for _ in range(options.rounds):
            began = now()
            ours = evaluate(options, saes)
            seconds.setdefault("s", []).append(now() - began - ours.pop())
            began = now()
            naive = three_passes(source.language_model, saes, rows)
            seconds.setdefault("naive_s", []).append(now() - began)
            if peer is not None:
                seconds.setdefault("saelens_s", []).append(peer.ask({"clock": options.clock})["seconds"])
    medians = {name: sorted(each)[len(each) // 2] for name, each in seconds.items()}
    return {
        **medians,
        **{f"{name.removesuffix('_s')}_over_ours": value / medians["s"] for name, value in medians.items() if name != "s"},
        "ce_loss_with_sae": ours[0],
        "naive_ce_loss_with_sae": naive[0],
        **{name: getattr(options, name) for name in ("saes", "rounds", "d_sae", "l0", "threads", "clock", "model", "hook")},
        "d_in": saes[0].d_in,
        "tokens": rows.numel(),
        "torch": torch.__version__,
    }


def evaluate(options: SourceOptions, saes: list[SparseAutoencoder]) -> list[float]:
    """Returns our losses with each autoencoder in place, and as last item the seconds that opening the source took.

    The cache is empty: activations, clean and zero losses are measured anew.
    """
    now = CLOCKS[options.clock]
    began = now()
    with fresh_source(options) as source:
        opening = now() - began
        records = evaluate_saes(saes, EvaluationData(source, num_tokens=options.tokens))
        closing = now()
    return [*(record["ce_loss_with_sae"] for record in records), opening + now() - closing]


def three_passes(model: LanguageModel, saes: list[SparseAutoencoder], rows: torch.Tensor) -> list[float]:
    """Returns the losses with each autoencoder in place, by three whole passes of the language model for each."""
    losses = []
    per_row = rows.shape[1] - 1
    for sae in saes:
        total = torch.zeros(3, dtype=torch.float64)
        for part in rows.split(model.loss_batch_size):
            total[0] += model.losses(part).sum().cpu()
            total[1] += model.losses(part, sae.forward).sum().cpu()
            total[2] += model.losses(part, torch.zeros_like).sum().cpu()
        losses.append(total[1].item() / (len(rows) * per_row))
    return losses


def make_saes(options: EvaluateOptions, d_in: int) -> list[SparseAutoencoder]:
    """Returns autoencoders of random weights, whose biases leave about l0 latents open on a random token."""
    made = []
    for seed in range(options.saes):
        generator = torch.Generator().manual_seed(seed)
        sae = SparseAutoencoder(SaeConfig(), d_in, options.d_sae, generator=generator)
        with torch.no_grad():
            sae.W_enc.copy_(sae.W_dec.T)
            sample = (torch.randn(256, d_in, generator=generator) @ sae.W_enc).flatten()
            sae.b_enc.fill_(-sample.kthvalue(max(1, round((1 - options.l0 / options.d_sae) * len(sample)))).values)
        made.append(sae.to(options.device))
    return made


def _peer(folder: Path, saes: list[SparseAutoencoder], rows: torch.Tensor, options: EvaluateOptions) -> Peer:
    from safetensors.torch import save_file

    tensors = {f"{i}.{name}": p.detach().clone() for i, sae in enumerate(saes) for name, p in sae.named_parameters()}
    save_file(tensors | {"rows": rows}, folder / "data.safetensors")
    info = describe_model(activation_config(options))
    arguments = [str(folder / "data.safetensors"), str(info.folder), options.hook, "--threads", str(options.threads)]
    return Peer("evaluate_saelens.py", [*arguments, "--rows", "32"], threads=options.threads)


if __name__ == "__main__":
    main()
