"""Hostile input: refused cleanly, nothing run, nothing written elsewhere, no memory, no hang; the short form of the fuzzer."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from events import operations as op

from hostile.guard import FLOOR_BYTES, Guard, refused_cleanly
from hostile.readers import READERS, one, warm_up
from prolu_tune.activations.arrow_files import DamagedFileError, file_checksum, fixed_rows
from prolu_tune.activations.cache import open_chunk
from prolu_tune.config.shape import check_dataset_exists, model_shape
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.results.query import load_sae
from prolu_tune.search.space import load_space

ROOT = Path(__file__).parents[2]
IN_SHORT = 40
_GUARDS: list[Guard] = []


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[Guard]:
    if not _GUARDS:  # Python's audit hooks stay for good, so there is one
        _GUARDS.append(Guard(tmp_path.parent))
    yield _GUARDS[0]


@pytest.mark.parametrize("name", list(READERS))
def test_mutated_inputs_are_taken_or_refused_with_our_own_errors(name: str, tmp_path: Path, guard: Guard) -> None:
    warm_up(name, guard, tmp_path, inputs=10)
    outcomes = [one(name, 0, number, guard, tmp_path) for number in range(IN_SHORT)]
    assert outcomes.count("refused") > 0 or name == "server's records"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_mutated_inputs_of_all_readers() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), "--inputs", "10000", "--seed", "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-3000:]


def _space(text: bytes) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        (folder / "space.yaml").write_bytes(text)
        return load_space(folder / "space.yaml").name

    return read


def _config(text: bytes) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        op.save(folder, 0)
        (folder / "sae" / "config.json").write_bytes(text)
        return str(load_sae(folder / "sae"))

    return read


@pytest.mark.parametrize(
    ("size", "read"),
    [
        (1_000_000, _space(b"seeds: [" + b"1," * 499_000 + b"1]")),
        (1_000_000, _space(b"a: " + b"x" * 999_000)),
        (1_000_000, _space(b"a: '" + b"\\'" * 490_000)),
        (1_000_000, _space(b"[" * 999_000)),
        (1_000_000, _space(b"? " * 499_000)),
        (1_000_000, _space(b"{a: " * 249_000)),
        (1_000_000, _space(b"- " * 499_000)),
        (1_000_000, _space(b"a:\n" * 300_000)),
        (1_000_000, _space(b"# " * 499_000)),
        (1_000_000, _space(b"\n" * 999_000)),
        (1_000_000, _space("a: \U0001f9ea".encode() + b"x" * 990_000)),
        (60_000, _space(b"seeds: [" + b"1," * 30_000 + b"1]")),
        (9_000, _space(b"architectures: {relu+l1: {l1_coefficient: [" + b",".join(b"%d" % i for i in range(1, 2000)) + b"]}}")),
        (200, _space(b"architectures: {relu+l1: {l1_coefficient: {start: 10, factor: 10, count: 10000}}}")),
        (200, _space(b"architectures: {relu+l1: {l1_coefficient: {low: 1e-300, high: 1e300, count: 10000}}}")),
        (
            1_000,
            _space(
                b"search: {kind: coverage, l0: [5, 50]}\narchitectures: {relu+l1: {l1_coefficient: {low: 1, high: 2}}}\ngrid:\n"
                + b"".join(
                    b"  training.%s: [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" % key
                    for key in (b"lr", b"batch_size", b"num_tokens", b"warmup_steps", b"cooldown_steps", b"cooldown_start")
                )
            ),
        ),
        (1_000_000, _config(b'{"a": [' + b"[]," * 330_000 + b"[]]}")),
        (1_000_000, _config(b'{"a": [' + b"{}," * 330_000 + b"{}]}")),
        (1_000_000, _config(b"[" * 999_000)),
        (1_000_000, _config(b'{"d_in":' + b"9" * 900_000 + b"}")),
        (1_000_000, _config(b'{"format": 2, "a": "' + b"\\ud800" * 160_000 + b'"}')),
    ],
)
def test_bombs_are_refused_without_their_memory_and_time(
    size: int, read: Callable[[Path], str], tmp_path: Path, guard: Guard
) -> None:
    refused_cleanly(guard, size, lambda: read(tmp_path), (InputError,))


def test_a_compressed_chunk_is_not_unpacked(tmp_path: Path, guard: Guard) -> None:
    path = tmp_path / "x"
    batch = fixed_rows(np.zeros((400_000, 64), np.float16), name="activation")
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    path = path.rename(tmp_path / f"train-0000000-{file_checksum(path)}.arrow")
    assert path.stat().st_size < 10_000 < FLOOR_BYTES < 400_000 * 64 * 2
    with guard.watching(path.stat().st_size), pytest.raises(DamagedFileError, match="that we do not write"):
        open_chunk(path, tokens=400_000, d_in=64)


def test_no_byte_of_an_arrow_file_leads_arrow_outside_of_it(tmp_path: Path) -> None:
    whole = op.store(tmp_path).ensure("train-0000000", lambda: op.activations(0)).read_bytes()
    metadata = [*range(8, 400), *range(len(whole) - 400, len(whole))]
    for place in metadata:
        for value in {0, 1, 2, 3, 0x51, 0x7F, 0x80, 0xFF, whole[place] ^ 1} - {whole[place]}:
            path = tmp_path / "x"
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            path = path.rename(tmp_path / f"train-0000000-{file_checksum(path)}.arrow")
            with contextlib.suppress(DamagedFileError):
                assert open_chunk(path, tokens=op.TOKENS, d_in=op.D_IN).shape == (op.TOKENS, op.D_IN)
            path.unlink()


def test_a_servers_enormous_numbers_are_shown_as_nothing(tmp_path: Path, guard: Guard) -> None:
    warm_up("server's records", guard, tmp_path, inputs=10)
    for number in (3, 253):  # 4e9 bins; tokens whose sum is beyond a float
        assert one("server's records", 0 if number == 3 else 6, number, guard, tmp_path) == "taken"


def test_the_guard_sees_what_it_is_there_for(tmp_path: Path, guard: Guard) -> None:
    def breaks(work: Callable[[], object], message: str) -> None:
        with pytest.raises(AssertionError, match=message):
            refused_cleanly(guard, 10, lambda: str(work()), (InputError,))

    breaks(lambda: eval("1 + 1"), "compile|exec")
    breaks(lambda: subprocess.run(["true"], check=True), r"subprocess\.Popen")
    breaks(lambda: bytearray(30 << 20), "took")
    breaks(lambda: Path("/dev/null").open("wb").close(), "for writing")
    breaks(lambda: json.loads("{"), "JSONDecodeError")


@pytest.mark.parametrize("name", ["..", ".", "../x", "/etc", "a/b", "", "a\nb", "a\0b", "x" * 65, ".hidden", "ä", "a b", "~"])
def test_a_sweeps_name_cannot_leave_the_storage_folder(name: str, tmp_path: Path) -> None:
    text = (ROOT / "search_spaces" / "quickstart.yaml").read_text()
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(InputError, match="name"):
        load_space(tmp_path / "space.yaml", name=name)
    with pytest.raises(InputError, match="name"):
        load_space(tmp_path / "space.yaml", overrides=[f"name={json.dumps(name)}"])


@pytest.mark.parametrize("text", ['name: "\\ud800"', '"\\udfff": 1', 'a: ["x\\ud83d\\ude00"]'])
def test_half_a_character_is_refused_with_its_place(text: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(InputError, match=r"space\.yaml:1:\d+: an escape between"):
        load_space(tmp_path / "space.yaml")


@pytest.mark.parametrize("value", ["a\0b", "x" * 5000, "/" + "y/" * 3000, "/proc/self/mem", "\ud800", "~no-such-user/x"])
def test_paths_that_no_file_system_knows_are_refused(value: str) -> None:
    with contextlib.suppress(InputError):
        model_shape(ActivationConfig.model_construct(model=value))
    with contextlib.suppress(InputError):
        check_dataset_exists(ActivationConfig.model_construct(dataset=value))


def test_what_a_folder_links_to_is_read_as_data_only(tmp_path: Path) -> None:
    op.save(tmp_path, 0)
    for name in ("config.json", "sae.safetensors"):
        for target in ("/etc/passwd", "/dev/zero", "/dev/stdin", str(tmp_path), "nowhere", name):
            shutil.rmtree(tmp_path / "sae")
            op.save(tmp_path, 0)
            (tmp_path / "sae" / name).unlink()
            (tmp_path / "sae" / name).symlink_to(target)
            with pytest.raises(InputError):
                load_sae(tmp_path / "sae")


def test_whole_checksums_around_nonsense_are_refused_by_the_journal(tmp_path: Path) -> None:
    from prolu_tune.durable import sealed

    op.JOURNAL.prepare(tmp_path)
    path = tmp_path / "sweep" / "study.journal"
    for nonsense in ({"op_code": 99}, {"op_code": 4, "trial_id": 10**9}, {"x": [1]}):
        whole = path.read_bytes()
        path.write_bytes(whole + sealed(nonsense) + sealed({"op_code": 3}))
        with pytest.raises(SurroundingsError, match="no study of ours"):
            op.open_study(tmp_path)
        path.write_bytes(whole)


def test_a_configuration_that_lacks_the_tensors_checksum_is_refused(tmp_path: Path) -> None:
    op.save(tmp_path, 0)
    path = tmp_path / "sae" / "config.json"
    document = {key: value for key, value in json.loads(path.read_bytes()).items() if key not in ("sha256", "config_sha256")}
    digest = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps(document | {"config_sha256": digest}))
    with pytest.raises(InputError, match="SHA-256"):
        load_sae(tmp_path / "sae")
