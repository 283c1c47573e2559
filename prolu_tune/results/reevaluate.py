"""Metrics of stored autoencoders measured again, or for the first time, and added to the MLflow runs that they belong to.

What a run holds is never written again: a metric of the same name is compared with the new value. New names are added to a
run only where its stored values are reproduced, so that one name never means two sets of data; values on other data go
under a prefix, whose meaning every run notes in a tag.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prolu_tune.activations.source import ActivationSource
from prolu_tune.config.trial import ActivationConfig, TrialConfig
from prolu_tune.errors import InputError
from prolu_tune.evaluation import LOSS_METRICS, Baseline, EvaluationData, evaluate_saes, measure_baseline, metric_names
from prolu_tune.results.checkpoints import run_folder
from prolu_tune.results.filters import StoredTrial, unknown_name
from prolu_tune.results.query import Sweep
from prolu_tune.results.store import open_store, store_errors
from prolu_tune.sae.folder import load_sae_folder, read_sae_config
from prolu_tune.sae.model import SparseAutoencoder

CHECKED = ("l0", "l1", "sqrt_l1", "mse", "fvu", "relative_norm")
"""Measured always: they tell whether these are the data that a run's stored values are of."""
TOLERANCE = 0.002
"""Relative difference up to which a value counts as reproduced: another machine rounds otherwise."""
PASS_BYTES = 4 * 2**30
"""Weights of the autoencoders that share one walk over the activations."""
PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
TAG = "prolu.evaluation."

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Told what is being measured, tokens done, tokens in all."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure, and on what."""

    metrics: Sequence[str] = ()
    """Names; none: all."""
    prefix: str | None = None
    """Stands before the names, with a dot; None: the names themselves."""
    model: str | None = None
    """Where the language model is now; None: where the trials have it from."""
    dataset: str | None = None
    """Data set; None: the trials' own."""
    split: str | None = None
    """Rows as shares, LOW:HIGH, or the name of a split on the hub; None: the trials' own."""
    num_tokens: int | None = None
    """Held-out tokens; None: the trials' own."""
    only_missing: bool = False
    """Leave out runs that hold every metric asked for."""

    @property
    def names(self) -> list[str]:
        """The metrics wanted, without a prefix."""
        return list(self.metrics) or metric_names()

    def stored(self, name: str) -> str:
        """Returns the name under which a metric is stored."""
        return name if self.prefix is None else f"{self.prefix}.{name}"

    def check(self) -> None:
        """Returns nothing if the request makes sense.

        Raises:
            InputError: naming what does not.
        """
        for name in self.metrics:
            if name not in metric_names():
                raise unknown_name(name, metric_names(), "metric")
        if self.prefix is not None and (not PREFIX.fullmatch(self.prefix) or self.prefix == "train"):
            raise InputError(f"--prefix {self.prefix}: a letter, then letters, digits, - and _, and not train; such as eval2")
        for flag, value in (("--split", self.split), ("--num-tokens", self.num_tokens)):
            if value is not None and self.prefix is None:
                raise InputError(f"{flag} {value} makes other data; name them with --prefix, such as --prefix eval2")


@dataclass(kw_only=True)
class Outcome:
    """What became of one run."""

    trial: StoredTrial
    added: dict[str, float] = field(default_factory=dict)
    same: list[str] = field(default_factory=list)
    """Names that the run held already, with the same value."""
    different: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Names that the run held with another value: stored, now. What is stored stays."""
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """Returns it as a part of the JSON document."""
        chosen = ("run_id", "trial", "architecture", "l1_coefficient", "seed")
        rest = {key: value for key, value in self.__dict__.items() if key != "trial"}
        return {key: self.trial.record[key] for key in chosen} | rest


def reevaluate(
    sweep: Sweep, request: Request, *, cache_dir: Path, device: str, say: Say, progress: Progress
) -> Iterator[list[Outcome]]:
    """Yields what became of the runs, one pass after the other; when a pass is yielded its values are stored.

    Args:
        sweep: One sweep; its finished trials are evaluated.
        request: What to measure, and on what.
        cache_dir: For activations and tokenised rows; may be the sweep's own.
        device: Where to compute.
        say: Told what a person should know.
        progress: Told how far it is.

    Raises:
        InputError: if the request does not fit the trials, the model or the data.
        SurroundingsError: if the tracking store, the disk or the hub fails; passes before are stored.
    """
    request.check()
    uri = sweep.facts[0].tracking_uri
    trials = chosen_trials(sweep, request)
    grounds: dict[str, _Ground] = {}
    done = 0
    for members, failed in _passes(uri, trials):
        if failed:
            yield failed
        if members:
            meant = members[0].meant
            if meant not in grounds:
                grounds[meant] = _prepare(
                    json.loads(meant), request, trials, cache_dir=cache_dir, device=device, say=say, progress=progress
                )
            done += len(members)
            text = "autoencoders" if len(members) == len(trials) else f"autoencoders to {done} of {len(trials)}"
            yield _measure_pass(uri, members, grounds[meant], request, lambda *at, text=text: progress(text, *at))


def chosen_trials(sweep: Sweep, request: Request) -> list[StoredTrial]:
    """Returns the trials that a request is about."""
    finished = [trial for trial in sweep.trials if trial.record["state"] == "finished"]
    if not request.only_missing:
        return finished
    return [trial for trial in finished if any(request.stored(name) not in trial.metrics for name in request.names)]


@dataclass(frozen=True, kw_only=True)
class _Member:
    trial: StoredTrial
    sae: SparseAutoencoder
    meant: str
    """What it was evaluated on when it was trained: activations and number of tokens, as JSON."""


@dataclass(frozen=True, kw_only=True)
class _Ground:
    """What autoencoders are evaluated on."""

    data: EvaluationData
    baseline: Baseline | None
    about: dict[str, Any]


def _passes(uri: str, trials: Sequence[StoredTrial]) -> Iterator[tuple[list[_Member], list[Outcome]]]:
    """Yields autoencoders that share data and fit into memory together, and the runs that hold none that can be used."""
    members: list[_Member] = []
    failed: list[Outcome] = []
    for trial in trials:
        try:
            member = _read(uri, trial)
        except InputError as error:
            failed.append(Outcome(trial=trial, error=str(error)))
            continue
        size = 8 * member.sae.d_in * member.sae.d_sae
        if members and (members[0].meant != member.meant or (len(members) + 1) * size > PASS_BYTES):
            yield members, failed
            members, failed = [], []
        members.append(member)
    yield members, failed


def _read(uri: str, trial: StoredTrial) -> _Member:
    """Returns a run's autoencoder and what it was evaluated on.

    Raises:
        InputError: if there is none that can be used.
    """
    with run_folder(open_store(uri), uri, trial.record["run_id"], checkpoint=trial.record["checkpoint"]) as folder:
        try:
            config = TrialConfig.model_validate(read_sae_config(folder)["config"])
        except ValidationError as error:
            first = str(error).splitlines()[0]
            raise InputError(f"{folder / 'config.json'}: {first}; evaluate with the version that trained it") from error
        meant = {"activations": config.activations.model_dump(mode="json"), "num_tokens": config.evaluation.num_tokens}
        return _Member(trial=trial, sae=load_sae_folder(folder), meant=json.dumps(meant))


def _prepare(
    meant: dict[str, Any],
    request: Request,
    trials: Sequence[StoredTrial],
    *,
    cache_dir: Path,
    device: str,
    say: Say,
    progress: Progress,
) -> _Ground:
    """Returns rows and losses without an autoencoder."""
    config = _on(ActivationConfig.model_validate(meant["activations"]), request)
    num_tokens = request.num_tokens or meant["num_tokens"]
    keys = ("model", "hook_name", "dataset", "dataset_split", "eval_range")
    about = {key: getattr(config, key) for key in keys} | {"num_tokens": num_tokens}
    about = json.loads(json.dumps(about))
    if request.prefix is not None:
        _check_prefix(trials, request.prefix, about)
    source = ActivationSource(
        config, cache_dir=cache_dir, device=device, say=say, progress=lambda *at: progress("tokenising the data", *at)
    )
    data = EvaluationData(source, num_tokens=num_tokens)
    baseline = None
    if not set(request.names).isdisjoint(LOSS_METRICS):
        progress("losses without an autoencoder", 0, data.num_tokens)
        baseline = measure_baseline(data, progress=lambda *at: progress("losses without an autoencoder", *at))
    return _Ground(data=data, baseline=baseline, about=about)


def _measure_pass(
    uri: str, members: Sequence[_Member], ground: _Ground, request: Request, progress: Callable[[int, int], None]
) -> list[Outcome]:
    """Returns what became of these runs, from one walk over the activations."""
    names = list(dict.fromkeys([*request.names, *CHECKED]))
    progress(0, ground.data.num_tokens)
    records = evaluate_saes(
        [member.sae for member in members], ground.data, baseline=ground.baseline, names=names, progress=progress
    )
    return [
        _store(uri, member.trial, {name: record[name] for name in names}, request, ground.about)
        for member, record in zip(members, records, strict=True)
    ]


def _on(config: ActivationConfig, request: Request) -> ActivationConfig:
    """Returns the activations to evaluate on: the trials' own with what the request changes.

    Raises:
        InputError: if rows of the training data would be evaluated on.
    """
    changes: dict[str, Any] = {}
    if request.model is not None:
        changes |= {"model": request.model, "model_revision": None}
    if request.dataset is not None and request.dataset != config.dataset:
        changes |= {"dataset": request.dataset, "dataset_revision": None, "column": None}
    if request.split is not None:
        if ":" in request.split:
            changes["eval_range"] = _shares(request.split)
        else:
            changes["dataset_split"] = request.split
    foreign = "dataset" in changes or changes.get("dataset_split", config.dataset_split) != config.dataset_split
    low, high = changes.get("eval_range", config.eval_range)
    if not foreign and config.train_range[0] < high and low < config.train_range[1]:
        raise InputError(
            f"--split {request.split} reaches into the training rows {list(config.train_range)} of {config.dataset}; "
            f"choose shares from {config.train_range[1]:g} to 1, or other data with --dataset"
        )
    # Of data that nothing was trained on any rows may be held out: the rule that both ranges be apart is not theirs.
    return config.model_copy(update=changes)


def _shares(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        shares = float(low or 0), float(high or 1)
    except ValueError as error:
        raise InputError(f"--split {text}: write shares of the rows as LOW:HIGH, such as 0.95:1") from error
    if not 0 <= shares[0] < shares[1] <= 1:
        raise InputError(f"--split {text}: shares run from 0 to 1, the lower one first, such as 0.95:1")
    return shares


def _check_prefix(trials: Sequence[StoredTrial], prefix: str, about: dict[str, Any]) -> None:
    """Raises InputError where a prefix stands for other data already."""
    for trial in trials:
        noted = trial.tags.get(TAG + prefix)
        if noted is not None and json.loads(noted) != about:
            changed = [f"{key} {value}" for key, value in json.loads(noted).items() if about.get(key) != value]
            raise InputError(
                f"--prefix {prefix} stands for other data already ({', '.join(changed)}); give these another prefix"
            )


def _store(uri: str, trial: StoredTrial, measured: dict[str, float], request: Request, about: dict[str, Any]) -> Outcome:
    """Returns what became of a run, after adding to it what it did not hold."""
    from mlflow.entities import Metric

    client, run_id = open_store(uri), trial.record["run_id"]
    outcome = Outcome(trial=trial)
    with store_errors(uri):
        run = client.get_run(run_id)
        held = run.data.metrics
        for name, value in measured.items():
            key = request.stored(name)
            if key not in held:
                if name in request.names:
                    outcome.added[key] = value
            elif _agree(held[key], value):
                outcome.same.append(key)
            else:
                outcome.different[key] = (held[key], value)
        if any(request.stored(name) in outcome.different for name in CHECKED):
            outcome.added.clear()
            outcome.error = (
                "its stored values are not reproduced: model or data are not those it was evaluated on; "
                "nothing was added (other data: --prefix eval2)"
            )
            return outcome
        step = int(trial.record["steps"] or 0)
        # As the driver does it: the same value sent twice is one value in MLflow.
        stamp = run.info.start_time + step
        if request.prefix is not None and outcome.added:
            client.set_tag(run_id, TAG + request.prefix, json.dumps(about))
        client.log_batch(run_id, metrics=[Metric(key, value, stamp, step) for key, value in outcome.added.items()])
    return outcome


def _agree(stored: float, now: float) -> bool:
    if math.isnan(stored) or math.isnan(now):
        return math.isnan(stored) and math.isnan(now)
    return math.isclose(stored, now, rel_tol=TOLERANCE, abs_tol=1e-6)
