import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prolu_tune.activations.cache import open_chunk
from prolu_tune.activations.source import ActivationSource
from prolu_tune.activations.stream import ActivationStream, token_order
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError

Make = Callable[..., ActivationConfig]


def chunk_of(source: ActivationSource, index: int) -> np.ndarray:
    return open_chunk(source.ensure(index), tokens=source.layout.chunk_tokens, d_in=source.d_in)


def digest(path: Path) -> tuple[str, str]:
    return path.name, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_chunk_holds_the_activations_of_its_rows_in_the_seeded_order(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    source = ActivationSource(config, cache_dir=tmp_path)
    layout = source.layout
    assert layout.chunks_per_epoch is not None
    assert layout.chunks_per_epoch >= 3
    index = layout.chunks_per_epoch - 1
    got = chunk_of(source, index)
    rows = source.rows.take("train", epoch=0, start=index * layout.rows_per_chunk, count=layout.rows_per_chunk)
    bridge = source.language_model.bridge
    _, cache = bridge.run_with_cache(torch.from_numpy(rows).long(), names_filter=config.hook_name)
    expected = cache[config.hook_name].flatten(0, 1).half().numpy()
    places = token_order(layout, config, index)
    # Another batch size than the source's, so equal to float16's rounding and not to the bit.
    np.testing.assert_allclose(got[places].astype(np.float32), expected.astype(np.float32), rtol=2e-3, atol=2e-3)
    in_row_order = np.abs(got[:32].astype(np.float32) - expected[:32].astype(np.float32)).max()
    assert in_row_order > 0.1  # shuffled, so not in row order


def test_two_chunks_share_no_row(make_config: Make, tmp_path: Path) -> None:
    source = ActivationSource(make_config(context_length=8, chunk_tokens=1024), cache_dir=tmp_path)
    layout = source.layout
    taken = [
        source.rows.take("train", epoch=0, start=layout.rows_of(chunk)[1], count=layout.rows_per_chunk).tobytes()
        for chunk in range(3)
    ]
    assert len(set(taken)) == 3


CHILD = """
import hashlib, json, sys
from pathlib import Path
from prolu_tune.activations.source import ActivationSource
from prolu_tune.config.trial import ActivationConfig

source = ActivationSource(ActivationConfig.model_validate_json(sys.argv[1]), cache_dir=Path(sys.argv[2]))
paths = {i: source.ensure(i) for i in json.loads(sys.argv[3])}
digests = {i: [p.name, hashlib.sha256(p.read_bytes()).hexdigest()] for i, p in paths.items()}
print(json.dumps({"produced": source.tokens_produced, "digests": digests}))
"""


def test_a_chunk_has_the_same_bytes_in_any_order_and_process_and_processes_share_the_work(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config(epochs=2)
    source = ActivationSource(config, cache_dir=tmp_path / "here")
    assert source.layout.chunks_per_epoch is not None
    chunks = [0, 1, source.layout.chunks_per_epoch]
    there = tmp_path / "there"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, config.model_dump_json(), str(there), json.dumps(order)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for order in (chunks, chunks[::-1])
    ]
    here = {i: digest(source.ensure(i)) for i in chunks}
    assert len({name for name, _ in here.values()}) == 3
    for i in reversed(chunks):
        source.ensure(i).unlink()
    assert {i: digest(source.ensure(i)) for i in reversed(chunks)} == here  # after eviction
    produced = 0
    for child in children:
        out, err = child.communicate(timeout=250)
        assert (child.returncode, err) == (0, "")
        answer = json.loads(out)
        produced += answer["produced"]
        assert {int(i): tuple(value) for i, value in answer["digests"].items()} == here
    assert produced == 3 * source.layout.chunk_tokens
    cached = ActivationSource(config, cache_dir=there)
    assert cached.has(0)
    cached.ensure(0)
    assert cached._model is None  # what is cached needs no model


def test_the_language_model_runs_once_per_chunk_for_any_number_of_readers(make_config: Make, tmp_path: Path) -> None:
    source = ActivationSource(make_config(), cache_dir=tmp_path)
    num_tokens = source.layout.chunk_tokens * 3
    sums: list[float] = []

    def read(first_token: int) -> None:
        stream = ActivationStream(source.layout, source.ensure)
        batches = stream.batches(first_token, batch_size=100, num_tokens=num_tokens)
        sums.append(sum(float(batch.float().sum()) for batch in batches))

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 0, 0, 500, 1500, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sums) == 6
    assert len(set(sums)) == 3
    assert source.tokens_produced == source.language_model.tokens_processed == num_tokens


def test_everything_that_changes_a_chunk_changes_the_fingerprint_and_nothing_else(
    make_config: Make, tmp_path: Path, llama_folder: Path
) -> None:
    def fingerprint(**changes: Any) -> str:
        return ActivationSource(make_config(**changes), cache_dir=tmp_path).fingerprint

    changing: list[dict[str, Any]] = [
        {"hook_name": "blocks.2.hook_resid_pre"},
        {"compatibility_mode": False},
        {"context_length": 8},
        {"overwrite_bos": False},
        {"train_on_bos": False},
        {"train_range": (0.0, 0.5)},
        {"chunk_tokens": 2048},
        {"seed": 1},
        {"lm_batch_size": 4},
        {"lm_precision": "bfloat16"},
        {"lm_threads": 2},
    ]
    same: list[dict[str, Any]] = [{"cache_gb": 1.0}, {"eval_range": (0.7, 0.9)}, {"epochs": 3}]
    first = fingerprint()
    assert len({first, *(fingerprint(**change) for change in changing)}) == len(changing) + 1
    assert {fingerprint(**change) for change in same} == {first}


def test_positions_of_bos_can_be_left_out_of_the_stream(make_config: Make, tmp_path: Path) -> None:
    source = ActivationSource(make_config(train_on_bos=False, hook_name="blocks.0.hook_resid_pre"), cache_dir=tmp_path)
    assert source.layout.tokens_per_row == 15
    bos = source.language_model.activations(torch.zeros(1, 16, dtype=torch.long))[0, 0].half().numpy()
    assert not (chunk_of(source, 0) == bos).all(1).any()
    whole = ActivationSource(make_config(hook_name="blocks.0.hook_resid_pre"), cache_dir=tmp_path)
    assert (chunk_of(whole, 0) == bos).all(1).sum() == whole.layout.rows_per_chunk


def test_activations_too_large_for_float16_are_refused(make_config: Make, tmp_path: Path) -> None:
    source = ActivationSource(make_config(), cache_dir=tmp_path)
    source.to_float16(torch.tensor([65_504.0]))
    for value in (65_505.0, float("inf"), float("nan")):
        with pytest.raises(
            InputError, match=r"blocks\.1\.hook_resid_pre .* reach .* float16, which ends at 65,504; choose another hook"
        ):
            source.to_float16(torch.tensor([0.0, -value]))


def test_a_chunk_beyond_the_allowed_epochs_is_refused(make_config: Make, tmp_path: Path) -> None:
    source = ActivationSource(make_config(), cache_dir=tmp_path)
    assert source.layout.chunks_per_epoch is not None
    with pytest.raises(InputError, match=r"pass 2 over the training rows .* activations\.epochs is 1; raise it"):
        source.ensure(source.layout.chunks_per_epoch)


def test_a_cache_smaller_than_two_chunks_is_refused_before_the_model_is_loaded(make_config: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cache_gb \(1e-06\) must hold at least two chunks"):
        ActivationSource(make_config(cache_gb=1e-6), cache_dir=tmp_path)
