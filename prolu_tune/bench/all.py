"""Everything that is measured, one process after the other, and the table of ratios: ours, SAELens, dictionary_learning.

Both sides of a ratio take turns in one run; figures are medians, except for the sweep, which is run once. Steps are
ReLU and L1 as the other libraries'.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from prolu_tune.bench.options import machine, make_parser
from prolu_tune.bench.peers.client import check_installed
from prolu_tune.errors import SurroundingsError

STEP_SHAPES = (
    ("step, 768 x 12,288, batch 4,096, L0 64", ["--l0", "64"]),
    ("step, 768 x 12,288, batch 4,096, L0 20", ["--l0", "20"]),
    ("step, 768 x 12,288, batch 4,096, L0 200", ["--l0", "200"]),
    ("step, 256 x 4,096, batch 2,048, L0 64", ["--d-in", "256", "--d-sae", "4096", "--batch", "2048"]),
)


def main() -> None:
    """Prints a Markdown table, or with `--json` one line of JSON with everything that was measured.

    Raises:
        InputError: if the other libraries are asked for and not installed.
        SurroundingsError: if a measurement fails.
    """
    parser = make_parser("all", __doc__, threads=1, steps=3)
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument(
        "--quick", action="store_true", help="steps, trial and evaluation only: they bear a busy machine with --clock cpu"
    )
    options = parser.parse_args()
    if not options.no_peers:
        check_installed()
    shared = ["--threads", str(options.threads), "--clock", options.clock, "--json"]
    peers = [] if options.no_peers else ["--peers"]
    results: dict[str, dict[str, Any]] = {}
    for name, flags in STEP_SHAPES:
        results[name] = _measured(["step", *flags, "--steps", str(options.steps), *peers, *shared])
    results["trial"] = _measured(["trial", *shared])
    results["evaluation"] = _measured(["evaluate", *peers, *shared])
    results["memory"] = _measured(["memory", "--json"])
    if not options.quick:
        results["stream"] = _measured(["stream", *shared])
        results["sweep"] = _measured(["sweep", *peers, "--rounds", "1", "--threads", "2", "--json"])
    if options.json:
        print(json.dumps(results))
        return
    print(f"{machine()}, {options.threads} threads, {options.clock} clock\n")
    for line in table(results):
        print(line)


def _measured(arguments: Sequence[str]) -> dict[str, Any]:
    print(f"measuring {' '.join(arguments)}", file=sys.stderr, flush=True)
    done = subprocess.run(  # noqa: S603  # our own module
        [sys.executable, "-m", "prolu_tune.bench", *arguments], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SurroundingsError(f"bench {arguments[0]} ended with {done.returncode}; its message stands above")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the lines of a Markdown table; a cell is empty where nothing was measured."""
    head = ("what", "ours, s", "ours dense", "SAELens", "dictionary_learning", "sparse step over the one product")
    rows = []
    for name, result in results.items():
        if name.startswith("step"):
            columns = (
                "s_per_step",
                "dense_over_sparse",
                "saelens_over_sparse",
                "dictionary_learning_over_sparse",
                "sparse_over_product",
            )
            rows.append((name, *(_cell(result.get(column)) for column in columns)))
    trial, evaluation, sweep = (results.get(name, {}) for name in ("trial", "evaluation", "sweep"))
    if trial:
        name = f"trial of {trial['steps']:,} steps, {trial['d_in']} x {trial['d_sae']:,}, batch {trial['batch']:,}"
        rows.append((name, _cell(trial["s"]), _cell(trial["dense_over_sparse"]), "", "", ""))
    if evaluation:
        name = f"evaluation of {evaluation['saes']}; three passes each by hand: {_cell(evaluation['naive_over_ours'])}"
        rows.append((name, _cell(evaluation["s"]), "", _cell(evaluation.get("saelens_over_ours")), "", ""))
    if sweep:
        name = f"sweep of {sweep['saes']}, {sweep['steps']} steps, {sweep['d_sae']:,} latents"
        rows.append((name, _cell(sweep["s"]), "", _cell(sweep.get("saelens_over_ours")), "", ""))
    return [_line(head), _line(["---"] * len(head)), *map(_line, rows), "", *_sentences(results)]


def _sentences(results: dict[str, dict[str, Any]]) -> list[str]:
    said = []
    if memory := results.get("memory"):
        said.append(
            f"Peak memory beyond torch's own: {memory['peak_bytes'] / 1e6:,.0f} MB, "
            f"{memory['peak_over_allowed']:.2f} of what is allowed."
        )
    if stream := results.get("stream"):
        said.append(
            f"Stream: {stream['read_tokens_per_s']:,.0f} tokens/s read; language model "
            f"{stream['lm_to_hook_tokens_per_s']:,.0f} to the hook, {stream['lm_whole_tokens_per_s']:,.0f} whole."
        )
    return said


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
