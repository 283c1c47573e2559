"""What a sweep of many trials costs its driver: Ray, Tune, study, MLflow and screen as they are, trials without training.

A Ray of 64 logical GPUs on this machine; each trial reports rows as a training does and ends with an invented result. One run
tells all sizes: what 250, 500, 1,000 and 2,000 trials have cost by the time they have ended, and the exponent over them, 1 for
a straight line and 2 for quadratic growth. CPU seconds, so that a busy machine does not blur them.

    python scripts/scale.py                       # 2,000 trials, about 8 minutes on two cores
    python scripts/scale.py --virtual             # without Ray, what is ours alone: 5 minutes
    python scripts/scale.py --trials 100 200 400 --gpus 8
"""

import argparse
import contextlib
import io
import json
import math
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from prolu_tune.durable import extend_file, sealed
from prolu_tune.screen.screen import make_screen
from prolu_tune.search.space import SearchSpace
from prolu_tune.sweep import ray_setup
from prolu_tune.sweep.driver import SweepDriver
from prolu_tune.sweep.files import SweepFolder
from prolu_tune.sweep.mlflow_writer import MlflowWriter
from prolu_tune.sweep.study import GridProposer, Proposal, SweepStudy, TrialResult
from prolu_tune.sweep.tracking import Tracker
from prolu_tune.sweep.tuning import fit

ROWS = 20
"""Rows of metrics that a trial leaves, about as many as a training does."""
METRICS = ("loss", "mse", "l0", "l1", "sqrt_l1", "frac_alive", "frac_dead", "grad_norm", "lr", "relative_norm", "fvu", "tokens")


def stub_trial(assignment: dict[str, Any]) -> None:
    """What `worker.ray_trial` reports, without training: rows on disk, some of them told, a result."""
    from ray import tune

    settings, index = assignment["settings"], assignment["index"]
    for row in stub_rows(SweepFolder(Path(settings["sweep_folder"])).trial(index), index):
        if row["step"] % (ROWS // settings["reports"]) == 0:
            time.sleep(settings["report_every_s"])
            tune.report({"row": row | {"num_steps": ROWS, "tokens_per_s": 1e5}})
    tune.report({"result": asdict(stub_result(index))})


def stub_rows(folder: Path, index: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of a trial, each of them on disk before."""
    folder.mkdir(parents=True, exist_ok=True)
    size = 0
    for step in range(1, ROWS + 1):
        row: dict[str, Any] = {"step": step} | {name: index + step / (7 + place) for place, name in enumerate(METRICS)}
        line = sealed(row)
        extend_file(folder / "metrics.jsonl", line, at=size)
        size += len(line)
        yield row


def stub_result(index: int) -> TrialResult:
    """Returns an invented result with as much in it as a real one."""
    l0 = 10 + index % 97
    names = ("l1", "sqrt_l1", "mse", "fvu", "ce_loss_clean", "ce_loss_with_sae", "ce_loss_zero", "ce_loss_score", "frac_alive")
    record = {"l0": float(l0), "ce_degradation": 5.0 / l0 + index % 13 / 100, "steps": ROWS, "tokens": 1e6, "wall_s": 9.0}
    record |= dict.fromkeys(names, index / 7)
    return TrialResult(outcome="finished", record=record, course=[(s / 50, l0) for s in range(1, 51)])


def run_virtually(driver: SweepDriver, *, gpus: int, reports: int) -> None:
    """Does to the driver what Tune does, without Ray and without waiting: all running trials report in turn."""
    running: deque[tuple[int, Iterator[dict[str, Any]]]] = deque()
    while True:
        answer = driver.next_trial() if len(running) < gpus else "wait"
        if isinstance(answer, Proposal):
            running.append((answer.index, stub_rows(driver.folder.trial(answer.index), answer.index)))
            continue
        if not running:
            return
        index, rows = running.popleft()
        for row in rows:
            if row["step"] % (ROWS // reports) == 0:
                driver.progress(index, row | {"num_steps": ROWS, "tokens_per_s": 1e5})
                running.append((index, rows))
                break
        else:
            driver.ended(index, stub_result(index))
        while driver.tracker._calls.qsize() > gpus:  # real trials would take minutes meanwhile
            time.sleep(0.01)


@dataclass
class Measured:
    """What has been seen by the end of some trial."""

    trials: int
    wall_s: float
    cpu_s: float
    mlflow_cpu_s: float
    mlflow_writes: int
    memory_mb: float
    journal_mb: float
    suggest_ms: float
    """Median of the last hundred suggestions."""


@dataclass
class Meter:
    """Takes the measurements at the sizes asked for."""

    sizes: list[int]
    journal: Path
    suggestions: list[float] = field(default_factory=list)
    taken: list[Measured] = field(default_factory=list)
    mlflow_writes: int = 0
    mlflow_cpu_s: float = 0.0
    longest_queue: int = 0
    ended: int = 0
    _wall: float = 0.0
    _cpu: float = 0.0

    def start(self) -> None:
        """Everything is counted from here: Ray is up, MLflow's database is made."""
        self._wall, self._cpu = time.monotonic(), _cpu_s()
        self.mlflow_writes, self.mlflow_cpu_s = 0, 0.0

    def trial_ended(self) -> None:
        """Counts a trial, and measures at the sizes asked for."""
        self.ended += 1
        if self.ended in self.sizes:
            self.taken.append(
                Measured(
                    trials=self.ended,
                    wall_s=time.monotonic() - self._wall,
                    cpu_s=_cpu_s() - self._cpu,
                    mlflow_cpu_s=self.mlflow_cpu_s,
                    mlflow_writes=self.mlflow_writes,
                    memory_mb=psutil.Process().memory_info().rss / 1e6,
                    journal_mb=self.journal.stat().st_size / 1e6,
                    suggest_ms=1e3 * statistics.median(self.suggestions[-100:]),
                )
            )
            print(json.dumps(asdict(self.taken[-1])), file=sys.stderr, flush=True)


class MeteredDriver(SweepDriver):
    """The driver, with a clock at both of its ends."""

    meter: Meter

    def next_trial(self) -> Any:
        """Times a suggestion."""
        before = time.perf_counter()
        answer = super().next_trial()
        if isinstance(answer, Proposal):
            self.meter.suggestions.append(time.perf_counter() - before)
        return answer

    def ended(self, index: int, result: TrialResult) -> None:
        """Counts a trial."""
        super().ended(index, result)
        self.meter.trial_ended()


class MeteredTracker(Tracker):
    """The tracker, with a count of its calls and the CPU seconds of its thread."""

    def __init__(self, make_writer: Callable[[], MlflowWriter], *, note: Callable[[str], None], meter: Meter) -> None:
        self._meter = meter
        super().__init__(make_writer, note=note)

    def _repeat(self, action: Callable[[MlflowWriter], None]) -> None:
        self._meter.longest_queue = max(self._meter.longest_queue, self._calls.qsize())
        before = time.thread_time()
        super()._repeat(action)
        self._meter.mlflow_cpu_s += time.thread_time() - before
        self._meter.mlflow_writes += 1


def _cpu_s() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


def space_of(num_trials: int) -> SearchSpace:
    """Returns a grid of six architectures with at least so many trials."""
    seeds = math.ceil(num_trials / 6 / 10)
    architectures = {
        f"{gate}+{penalty}": {"l1_coefficient": [1.0 + i / 10 for i in range(10)]}
        for gate in ("relu", "prolu_relu", "prolu_ste")
        for penalty in ("l1", "sqrt_l1")
    }
    return SearchSpace.model_validate(
        {"name": "scale", "architectures": architectures, "seeds": list(range(seeds)), "resources": {"gpus_per_trial": 1}}
    )


def measure(sizes: list[int], *, gpus: int, reports: int, report_every_s: float, storage: Path, virtual: bool) -> Meter:
    """Returns what a sweep of the largest size cost at every size."""
    space = space_of(max(sizes))
    folder = SweepFolder.of(storage, space.name)
    folder.create()
    meter = Meter(sizes, folder.journal_file)
    screen = make_screen(io.StringIO())
    uri = f"sqlite:///{storage / 'mlflow.db'}"
    tracker = MeteredTracker(
        lambda: MlflowWriter(uri, experiment="scale", artifacts=storage / "artifacts", sweep=space.name),
        note=lambda text: print(text, file=sys.stderr),
        meter=meter,
    )
    driver = MeteredDriver(space.name, folder, SweepStudy(folder, space.name), GridProposer(space), tracker, screen)
    driver.meter = meter
    made = threading.Event()
    tracker.call(lambda writer: writer.start_sweep(space.to_json(), space.num_trials))
    tracker.call(lambda writer: made.set())
    made.wait()
    if virtual:
        meter.start()
        run_virtually(driver, gpus=gpus, reports=reports)
        tracker.close(timeout_s=600)
        return meter
    _start_ray(storage, gpus)
    driver.capacity = gpus
    settings = {"sweep_folder": str(folder.root), "reports": reports, "report_every_s": report_every_s}
    meter.start()
    fit(driver, stub_trial, settings=settings, resources=space.resources)
    tracker.close(timeout_s=600)
    return meter


def _start_ray(storage: Path, gpus: int) -> None:
    import os

    os.environ.update(ray_setup.QUIET_ENVIRONMENT)
    ray_setup._use_token(storage)
    import ray

    ray.init(
        address="local",
        num_cpus=gpus,
        num_gpus=gpus,
        include_dashboard=False,
        object_store_memory=ray_setup.OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(storage / "ray"),
        log_to_driver=False,
        logging_level="ERROR",
    )


def exponent(taken: list[Measured], value: Callable[[Measured], float]) -> float:
    """Returns the slope of log value over log trials, by least squares."""
    x = [math.log(one.trials) for one in taken]
    y = [math.log(max(value(one), 1e-9)) for one in taken]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def report(meter: Meter, *, gpus: int, reports: int, report_every_s: float) -> str:
    """Returns the figures as a table of Markdown and a line on growth."""
    lines = [
        f"{gpus} logical GPUs; a trial: {reports} reports, {report_every_s:g} s apart, {ROWS} rows of {len(METRICS)} metrics",
        "",
        "| trials | wall s | driver CPU s | ms a trial | of it MLflow | MLflow calls/s | memory MB | journal MB | suggest ms |",
        "|" + " --- |" * 9,
    ]
    for one in meter.taken:
        lines.append(
            f"| {one.trials:,} | {one.wall_s:.0f} | {one.cpu_s:.1f} | {1e3 * one.cpu_s / one.trials:.1f} "
            f"| {1e3 * one.mlflow_cpu_s / one.trials:.1f} | {one.mlflow_writes / one.wall_s:.1f} "
            f"| {one.memory_mb:.0f} | {one.journal_mb:.2f} | {one.suggest_ms:.2f} |"
        )
    if len(meter.taken) > 1:
        growth = {
            "driver CPU": exponent(meter.taken, lambda one: one.cpu_s),
            "MLflow CPU": exponent(meter.taken, lambda one: one.mlflow_cpu_s),
            "journal": exponent(meter.taken, lambda one: one.journal_mb),
        }
        lines += [
            "",
            "growth with the number of trials: " + ", ".join(f"{name} n^{power:.2f}" for name, power in growth.items()),
        ]
    return "\n".join([*lines, f"longest queue of MLflow calls: {meter.longest_queue}"])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[250, 500, 1000, 2000], help="sizes at which to measure")
    parser.add_argument("--gpus", type=int, default=64, help="logical GPUs: trials at once")
    parser.add_argument("--reports", type=int, default=5, help="reports of a trial to the driver")
    parser.add_argument("--report-every-s", type=float, default=2.0, help="seconds between a trial's reports")
    parser.add_argument("--virtual", action="store_true", help="without Ray and without waiting: study, driver, MLflow, screen")
    arguments = parser.parse_args()
    # Ray prints what its machines tell; standard output is for the table.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    how = {"gpus": arguments.gpus, "reports": arguments.reports, "report_every_s": arguments.report_every_s}
    with (
        tempfile.TemporaryDirectory(prefix="prolu-scale-", ignore_cleanup_errors=True) as storage,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        meter = measure(sorted(arguments.trials), storage=Path(storage), virtual=arguments.virtual, **how)
        if not arguments.virtual:
            import ray

            ray.shutdown()
    print(report(meter, **how))


if __name__ == "__main__":
    main()
