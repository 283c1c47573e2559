"""The writes of a sweep, one at a time: each with what was there before, what it does, and what may be found after."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from prolu_tune.activations.cache import ChunkStore, chunk_name, open_chunk
from prolu_tune.config.trial import SaeConfig, TrainingConfig, TrialConfig
from prolu_tune.durable import replace_file, sealed
from prolu_tune.sae import SparseAutoencoder
from prolu_tune.sae.folder import load_sae_folder, read_sae_config, save_metrics, save_sae
from prolu_tune.sae.tensor_file import TensorSpec, spec_of
from prolu_tune.sweep.files import SweepFolder, read_stored
from prolu_tune.sweep.study import SweepStudy, TrialResult, enter_trial
from prolu_tune.sweep.trial import MetricsFile
from prolu_tune.training.checkpoint import Checkpoint, load_newest, save_checkpoint

SHAPE = (40, 30)
TOKENS, D_IN = 64, 8


class Operation(NamedTuple):
    """One write on real files."""

    prepare: Callable[[Path], None]
    """Makes the state before."""
    act: Callable[[Path], None]
    """The write."""
    check: Callable[[Path], bool]
    """Returns whether the new state is there; fails if what is there is neither the old nor the new."""
    go_on: Callable[[Path], None]
    """The next writes, and a check that all is as if nothing had happened."""


# -- a checkpoint


def checkpoint(step: int, shape: tuple[int, int] = SHAPE) -> Checkpoint:
    """Returns the checkpoint of a step, the same at each call."""
    weights = torch.randn(*shape, generator=torch.Generator().manual_seed(step))
    return Checkpoint(step, {"w": weights, "n": torch.tensor([step, 2])}, {"step": step, "notes": ["ä"]})


def specs(shape: tuple[int, int] = SHAPE) -> dict[str, TensorSpec]:
    """Returns what its tensors must be."""
    return {name: spec_of(tensor) for name, tensor in checkpoint(0, shape).tensors.items()}


def same_checkpoint(a: Checkpoint | None, b: Checkpoint) -> bool:
    """Returns whether two checkpoints are equal to the last bit."""
    return a is not None and a[::2] == b[::2] and all(torch.equal(a.tensors[name], b.tensors[name]) for name in b.tensors)


def _checkpoint_check(folder: Path) -> bool:
    found, notes = load_newest(folder / "checkpoints", specs())
    assert not notes, notes
    assert found is not None and found.step in (20, 30), found
    assert same_checkpoint(found, checkpoint(found.step))
    return found.step == 30


def _checkpoint_go_on(folder: Path) -> None:
    save_checkpoint(folder / "checkpoints", checkpoint(40))
    assert same_checkpoint(load_newest(folder / "checkpoints", specs())[0], checkpoint(40))
    left = [path.name for path in (folder / "checkpoints").iterdir()]
    assert len(left) == 2 and all(name.endswith(".safetensors") for name in left), left


def _checkpoint_prepare(folder: Path) -> None:
    for step in (10, 20):
        save_checkpoint(folder / "checkpoints", checkpoint(step))


CHECKPOINT = Operation(
    _checkpoint_prepare,
    lambda folder: void(save_checkpoint(folder / "checkpoints", checkpoint(30))),
    _checkpoint_check,
    _checkpoint_go_on,
)


def void(_: object) -> None:
    """Takes a value and returns nothing."""


# -- the study's journal


def config(index: int) -> TrialConfig:
    """Returns the configuration of a trial."""
    return TrialConfig(seed=index, training=TrainingConfig(l1_coefficient=0.5 + index))


def result(index: int) -> TrialResult:
    """Returns the result of a trial."""
    return TrialResult(outcome="finished", record={"l0": 10.0 + index, "mse": 0.1}, course=[(0.5, 20.0), (1.0, 10.0 + index)])


def open_study(folder: Path) -> SweepStudy:
    """Returns the study of a folder, opened."""
    sweep = SweepFolder(folder / "sweep")
    if not sweep.root.exists():
        sweep.root.mkdir()
    return SweepStudy(sweep, "s")


def _journal_prepare(folder: Path) -> None:
    study = open_study(folder)
    for index in range(3):
        enter_trial(study.optuna_study, index, config(index))
    for index in range(2):
        study.finish(index, result(index))


def _journal_act(folder: Path) -> None:
    study = open_study(folder)
    study.finish(2, result(2))
    if 3 not in study.entries():
        enter_trial(study.optuna_study, 3, config(3))


def _journal_check(folder: Path) -> bool:
    study = open_study(folder)
    results, entries, configs = study.results(), study.entries(), study.configs()
    assert results == {index: result(index) for index in range(3 if 2 in results else 2)}, results
    assert configs == {index: config(index) for index in range(4 if 3 in configs else 3)}
    assert all(entry.state.is_finished() == (index in results) for index, entry in entries.items())
    assert 3 not in configs or 2 in results, "a later record without an earlier one"
    return 3 in configs


def _journal_go_on(folder: Path) -> None:
    _journal_act(folder)
    study = open_study(folder)
    study.finish(3, result(3))
    again = open_study(folder)
    assert again.torn_bytes == 0 and again.results() == {index: result(index) for index in range(4)}
    left = sorted(path.name for path in (folder / "sweep").iterdir())
    assert left in (["study.journal"], ["study.journal", "study.journal.torn"]), left


JOURNAL = Operation(_journal_prepare, _journal_act, _journal_check, _journal_go_on)


def _torn_prepare(folder: Path) -> None:
    _journal_prepare(folder)
    with (folder / "sweep" / "study.journal").open("ab") as file:
        file.write(b'{"op_code":4,"half":')


JOURNAL_REPAIR = Operation(
    _torn_prepare, lambda folder: void(open_study(folder)), lambda folder: not _journal_check(folder), _journal_go_on
)


# -- chunks of activations


def activations(index: int) -> np.ndarray:
    """Returns the activations of a chunk."""
    return np.random.Generator(np.random.Philox(key=index)).standard_normal((TOKENS, D_IN)).astype(np.float16)


def store(folder: Path) -> ChunkStore:
    """Returns a store with room for two chunks."""
    return ChunkStore(folder / "cache", "f" * 64, max_bytes=2 * 2048)


def chunk_holds(folder: Path, index: int) -> bool:
    """Returns whether a chunk is there; fails if it is there and not what it should be."""
    path = store(folder).find(chunk_name(index))
    if path is None:
        return False
    assert np.array_equal(open_chunk(path, tokens=TOKENS, d_in=D_IN), activations(index))
    return True


def _chunk_prepare(folder: Path) -> None:
    for index in range(2):
        store(folder).ensure(chunk_name(index), lambda index=index: activations(index))


def _chunk_check(folder: Path) -> bool:
    chunk_holds(folder, 0)
    assert chunk_holds(folder, 1), "the chunk in use is gone"
    return chunk_holds(folder, 2)


def _chunk_act(folder: Path) -> None:
    store(folder).ensure(chunk_name(2), lambda: activations(2))


def _chunk_go_on(folder: Path) -> None:
    _chunk_act(folder)
    store(folder).ensure(chunk_name(3), lambda: activations(3))
    assert chunk_holds(folder, 3)
    left = sorted(path.name.split("-")[-1][:4] for path in store(folder).folder.iterdir())
    assert not [name for name in left if name.endswith("tmp")], left
    assert sum(path.stat().st_size for path in store(folder).folder.glob("*.arrow")) <= 2 * 2048


CHUNK = Operation(_chunk_prepare, _chunk_act, _chunk_check, _chunk_go_on)


# -- the folder of a trained autoencoder


def sae(seed: int, d_in: int = 5, d_sae: int = 9) -> SparseAutoencoder:
    """Returns the autoencoder of a seed."""
    return SparseAutoencoder(SaeConfig(), d_in, d_sae, generator=torch.Generator().manual_seed(seed))


def save(folder: Path, seed: int) -> None:
    """Writes the folder of a seed's autoencoder."""
    metrics = {"l0": float(seed)}
    save_sae(sae(seed), folder / "sae", config=TrialConfig(seed=seed).model_dump(mode="json"), versions={}, metrics=metrics)


def sae_seed(folder: Path) -> int:
    """Returns the seed of the autoencoder that is there; fails if it is not whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_sae_folder(folder / "sae")
    for seed in range(3):
        if torch.equal(loaded.W_enc, sae(seed).W_enc):
            assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in sae(seed).state_dict().items())
            return seed
    raise AssertionError("no autoencoder that was ever saved")


def _sae_check(folder: Path) -> bool:
    seed = sae_seed(folder)
    assert seed in (0, 1)
    return seed == 1


def _sae_go_on(folder: Path) -> None:
    save(folder, 2)
    assert sae_seed(folder) == 2
    assert [path.name for path in folder.iterdir()] == ["sae"]


SAE = Operation(lambda folder: save(folder, 0), lambda folder: save(folder, 1), _sae_check, _sae_go_on)


def _sae_metrics_check(folder: Path) -> bool:
    assert sae_seed(folder) == 0
    l0 = read_sae_config(folder / "sae")["metrics"]["l0"]
    assert l0 in (0.0, 7.5)
    return l0 == 7.5


SAE_METRICS = Operation(
    lambda folder: save(folder, 0), lambda folder: save_metrics(folder / "sae", {"l0": 7.5}), _sae_metrics_check, _sae_go_on
)


# -- rows of metrics, and the small files beside them


def row(step: int) -> dict[str, float]:
    """Returns the row of a step."""
    return {"step": step, "loss": step / 3, "l0": 100.0 / step}


def rows_file(folder: Path) -> MetricsFile:
    """Returns the rows of a folder, opened."""
    return MetricsFile(folder / "metrics.jsonl")


def append_rows(folder: Path, *steps: int) -> None:
    """Appends the rows of these steps."""
    rows = rows_file(folder)
    for step in steps:
        rows.append(row(step))


def _rows_check(folder: Path) -> bool:
    rows = rows_file(folder).rows
    assert rows in ([row(10), row(20)], [row(10), row(20), row(30)]), rows
    return len(rows) == 3


def _rows_go_on(folder: Path) -> None:
    append_rows(folder, 30, 40)
    assert rows_file(folder).rows == [row(step) for step in (10, 20, 30, 40)]
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


METRICS = Operation(
    lambda folder: append_rows(folder, 10, 20), lambda folder: append_rows(folder, 30), _rows_check, _rows_go_on
)
METRICS_REPEATED = Operation(
    lambda folder: append_rows(folder, 10, 20, 30),
    lambda folder: append_rows(folder, 20),
    lambda folder: not _rows_check(folder),
    _rows_go_on,
)


def _small_check(folder: Path) -> bool:
    found = read_stored(folder / "trained.json")
    assert found in ({"steps": 1}, {"steps": 2})
    return found["steps"] == 2


def store_small(folder: Path, steps: int) -> None:
    """Writes a small file."""
    replace_file(folder / "trained.json", [sealed({"steps": steps})])


def _small_go_on(folder: Path) -> None:
    store_small(folder, 2)
    assert _small_check(folder)
    assert [path.name for path in folder.iterdir()] == ["trained.json"]


SMALL_FILE = Operation(lambda folder: store_small(folder, 1), lambda folder: store_small(folder, 2), _small_check, _small_go_on)

OPERATIONS = {
    "checkpoint": CHECKPOINT,
    "journal append": JOURNAL,
    "journal repair": JOURNAL_REPAIR,
    "chunk": CHUNK,
    "SAE folder": SAE,
    "SAE metrics": SAE_METRICS,
    "metrics row": METRICS,
    "metrics row repeated": METRICS_REPEATED,
    "small file": SMALL_FILE,
}
