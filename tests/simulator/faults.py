"""What may go wrong, where, and a plan of it for each seed."""

import errno
import random
from collections.abc import Mapping
from dataclasses import dataclass

WRITES = ("write",)
DISK_ERRORS: dict[str, tuple[int, ...]] = {
    "write": (errno.ENOSPC, errno.EIO),
    "fsync": (errno.EIO, errno.ENOSPC),
    "create": (errno.ENOSPC, errno.EIO),
    "mkdir": (errno.ENOSPC, errno.EIO),
    "rename": (errno.ENOSPC, errno.EIO),
    "link": (errno.ENOSPC,),
    "truncate": (errno.EIO,),
}
"""Errors that a disk gives, by operation."""
CRASHES = ("kill before", "kill after", "power before", "power after")
PAUSES_S = (5.0, 40.0, 120.0)
"""40 s passes the grace of Optuna's own file lock."""


@dataclass
class Fault:
    """One fault: at the `occurrence`-th effect of this name (None: of any), of a kind that is drawn when it strikes."""

    target: str | None
    occurrence: int
    kind: str | None = None
    """None: drawn among those that may happen there."""


BEFORE: dict[str, tuple[tuple[str, str], ...]] = {
    "driver: create study.journal.torn.tmp": (("driver: write study.journal", "kill halfway"),),
    "driver: unlink study.journal.torn.tmp": (
        ("driver: write study.journal", "kill halfway"),
        ("driver: fsync study.journal.torn.tmp", "kill before"),
    ),
    "driver: unlink study.journal.tmp": (
        ("driver: write study.journal", "kill halfway"),
        ("driver: fsync study.journal.tmp", "error 5"),
    ),
    "driver: truncate space.json.tmp": (("driver: fsync space.json.tmp", "kill before"),),
    "driver: unlink space.json.tmp": (("driver: fsync space.json.tmp", "error 5"),),
    "driver: truncate tracked.tmp": (("driver: fsync tracked.tmp", "kill before"),),
    "driver: unlink tracked.tmp": (("driver: fsync tracked.tmp", "error 5"),),
    "driver: truncate write test": (("driver: unlink write test", "kill before"),),
    "driver: truncate study.journal": (("driver: write study.journal", "error 28"),),
    "driver: unlink artifact": (("driver: link artifact", "kill after"),),
    "driver: create artifact": (("driver: link artifact", "error 28"),),
    "driver: write artifact": (("driver: link artifact", "error 28"),),
    "trial: truncate metrics.jsonl": (("trial: write metrics.jsonl", "error 28"),),
    "trial: truncate metrics.jsonl.tmp": (
        ("trial: step", "worker lost after"),
        ("trial: fsync metrics.jsonl.tmp", "worker lost before"),
    ),
    "trial: create metrics.jsonl.tmp": (("trial: step", "worker lost after"),),
    "trial: unlink metrics.jsonl.tmp": (("trial: step", "worker lost after"), ("trial: fsync metrics.jsonl.tmp", "error 5")),
    "trial: unlink checkpoint.tmp": (("trial: fsync checkpoint.tmp", "error 5"),),
    "trial: truncate trained.json.tmp": (("trial: fsync trained.json.tmp", "worker lost before"),),
    "trial: unlink trained.json.tmp": (("trial: fsync trained.json.tmp", "error 5"),),
    "trial: truncate error.txt.tmp": (("trial: fsync error.txt.tmp", "worker lost before"),),
    "trial: unlink error.txt.tmp": (("trial: fsync error.txt.tmp", "error 5"),),
    "trial: truncate sae config.json.tmp": (("trial: fsync sae config.json.tmp", "worker lost before"),),
    "trial: unlink sae config.json.tmp": (("trial: fsync sae config.json.tmp", "error 5"),),
    "trial: unlink sae sae.safetensors.tmp": (("trial: fsync sae sae.safetensors.tmp", "error 5"),),
    "trial: unlink sae config.json": (("trial: rename trained.json", "worker lost before"),),
    "trial: unlink sae sae.safetensors": (("trial: rename trained.json", "worker lost before"),),
    "trial: rmdir sae.tmp": (("trial: fsync sae.tmp", "worker lost after"),),
    "trial: rename sae.old": (("trial: rename trained.json", "worker lost before"),),
    "mlflow: delete_run": (("mlflow: create_run", "error late"),),
    "mlflow: delete_tag": (("driver: write study.journal", "signal"),),
}
"""What has to go wrong first for a failpoint to be passed at all; others that are rarely passed follow from these."""
SELDOM = {
    "driver: unlink study.journal.tmp": 2,
    "driver: unlink study.journal.torn.tmp": 2,
    "driver: create artifact": 2,
    "driver: fsync sweeps": 2,
    "driver: rename space.json": 2,
    "driver: truncate space.json.tmp": 2,
    "driver: truncate write test": 2,
    "driver: unlink space.json.tmp": 2,
    "driver: write artifact": 2,
    "driver: write space.json.tmp": 2,
    "mlflow: delete_run": 5,
    "mlflow: delete_tag": 8,
    "trial: create error.txt.tmp": 3,
    "trial: create metrics.jsonl.tmp": 2,
    "trial: fsync error.txt.tmp": 2,
    "trial: rename error.txt": 3,
    "trial: truncate error.txt.tmp": 4,
    "trial: rename sae.old": 2,
    "trial: truncate sae config.json.tmp": 3,
    "trial: unlink checkpoint": 2,
    "trial: unlink error.txt.tmp": 4,
    "trial: unlink metrics.jsonl.tmp": 3,
    "trial: unlink sae config.json": 2,
    "trial: unlink sae sae.safetensors": 2,
    "trial: unlink sae sae.safetensors.tmp": 3,
    "trial: unlink trained.json.tmp": 4,
    "trial: write error.txt.tmp": 3,
}
"""Failpoints that few sweeps pass are drawn so many times as often."""
LIKEWISE = {
    "study.journal.torn": "driver: create study.journal.torn.tmp",
    "study.journal.tmp": "driver: create study.journal.torn.tmp",
    "rename study.journal": "driver: create study.journal.torn.tmp",
    "metrics.jsonl.tmp": "trial: create metrics.jsonl.tmp",
    "rename metrics.jsonl": "trial: create metrics.jsonl.tmp",
    "sae.old": "trial: rename sae.old",
    "sae.tmp": "trial: rmdir sae.tmp",
}
"""Parts of names, and the failpoint whose conditions they share."""


def conditions(target: str) -> list[Fault]:
    """Returns the faults that lead to a failpoint which an undisturbed sweep never passes."""
    named = BEFORE.get(target) or next((BEFORE[other] for part, other in LIKEWISE.items() if part in target), ())
    return [Fault(name, 1, kind) for name, kind in named]


def plan(rng: random.Random, catalogue: tuple[str, ...], usual: Mapping[str, int]) -> list[Fault]:
    """Returns the faults of one seed, one after the other.

    Args:
        rng: draws it.
        catalogue: the failpoints.
        usual: how often an undisturbed run of the sweep passes each.
    """
    groups: list[list[Fault]] = []
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        if rng.random() < 0.15:
            groups.append([Fault(None, rng.randint(1, 400))])
            continue
        target = rng.choices(catalogue, [SELDOM.get(name, 1) for name in catalogue])[0]
        if usual.get(target):
            near = rng.random() < 0.3
            groups.append([Fault(target, 1 if near else rng.randint(1, usual[target]))])
        else:
            leading = conditions(target)
            for fault in leading:
                fault.occurrence = rng.randint(1, max(1, usual.get(fault.target or "", 1)))
            groups.append([*leading, Fault(target, 1)])
    if rng.random() < 0.7:  # in the order in which a sweep gets there, so that more of them find their place
        order = {name: place for place, name in enumerate(usual)}
        groups.sort(key=lambda group: order.get(group[0].target or "", 0))
    return [fault for group in groups for fault in group]


def kinds_at(name: str) -> list[str]:
    """Returns the kinds of faults that may strike at a failpoint."""
    role, _, effect = name.partition(": ")
    operation = effect.split(" ")[0]
    if role == "mlflow":
        return [
            *("error before", "error after", "error late", "slow", "away", "refused"),
            *("kill before", "kill after", "power before", "pause", "signal", "second driver"),
        ]
    errors = [f"error {number}" for number in DISK_ERRORS.get(operation, ())]
    if errors and operation in ("write", "create", "fsync", "mkdir"):
        errors.append("disk full")
    if operation == "write":
        errors += ["kill halfway", "power halfway"]
    if role == "trial":
        return ["worker lost before", "worker lost after", "kill driver", "kill driver", *CRASHES[2:], "pause", *errors]
    return [*CRASHES, "pause", "signal", "second driver", "clock step", *errors]
