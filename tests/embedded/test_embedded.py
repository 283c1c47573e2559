import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

from prolu_tune.embedded import MODEL_DIR, TEXT_FILE

HOOK_NAME = "blocks.2.hook_resid_pre"
N_CTX = 128


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads wait for each other so long on a busy machine that these tests took minutes instead of seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@functools.cache
def bridge() -> TransformerBridge:
    model = TransformerBridge.boot_transformers(str(MODEL_DIR), device="cpu")
    model.enable_compatibility_mode()
    return model


def texts() -> list[str]:
    return pq.read_table(TEXT_FILE).column("text").to_pylist()


def rows_of(documents: list[str]) -> Tensor:
    """The documents as rows of 128 tokens whose position 0 is BOS."""
    stream = [token for text in documents for token in tokenizer()(text)["input_ids"]]
    num_rows = len(stream) // (N_CTX - 1)
    rows = torch.tensor(stream[: num_rows * (N_CTX - 1)]).view(num_rows, N_CTX - 1)
    return torch.cat([torch.full((num_rows, 1), tokenizer().bos_token_id), rows], dim=1)


@functools.cache
def held_out_rows() -> Tensor:
    """Thirty-two rows of the last tenth of the documents."""
    documents = texts()
    rows = rows_of(documents[-len(documents) // 10 :][:30])
    return rows[:: len(rows) // 32][:32]


def mean_loss(logits: Tensor) -> float:
    return cross_entropy(logits[:, :-1].flatten(0, 1), held_out_rows()[:, 1:].flatten()).item()


@functools.cache
@torch.no_grad()
def clean_logits() -> Tensor:
    return bridge()(held_out_rows())


def test_model_and_text_stay_under_the_sizes_a_package_can_carry():
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 4_000_000
    assert TEXT_FILE.stat().st_size <= 3_000_000


def test_the_folder_holds_safetensors_and_json_only():
    assert {path.suffix for path in MODEL_DIR.iterdir()} == {".safetensors", ".json"}


def test_no_file_names_the_machine_it_was_made_on():
    for path in (*MODEL_DIR.glob("*.json"), TEXT_FILE.parent / "README.md"):
        text = path.read_text(encoding="utf-8")
        assert str(Path.home()) not in text, path.name
        assert str(TEXT_FILE.parent) not in text, path.name


def test_weights_load_as_float32_although_they_are_stored_in_half_of_that():
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (MODEL_DIR / "model.safetensors").stat().st_size < 2.1 * num_parameters


def test_bridge_boots_and_gives_the_hook_a_centred_residual_of_the_configured_width():
    _, cache = bridge().run_with_cache(held_out_rows()[:4], names_filter=HOOK_NAME)
    acts = cache[HOOK_NAME]
    assert acts.shape == (4, N_CTX, bridge().cfg.d_model)
    assert acts.mean(-1).abs().max() < 1e-4 * acts.norm(dim=-1).mean()


def test_bridge_without_processed_weights_computes_what_transformers_computes():
    plain = TransformerBridge.boot_transformers(str(MODEL_DIR), device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    rows = held_out_rows()[:4]
    with torch.no_grad():
        torch.testing.assert_close(plain(rows), reference(rows).logits, rtol=1e-4, atol=1e-4)


def test_held_out_text_is_predicted_far_better_than_by_word_counts():
    counts = Counter(rows_of(texts()[:300])[:, 1:].flatten().tolist())
    smoothed = torch.tensor([counts[token] + 1.0 for token in range(len(tokenizer()))])
    unigram = -(smoothed / smoothed.sum()).log()[held_out_rows()[:, 1:]].mean().item()
    assert mean_loss(clean_logits()) < unigram - 1.5


def test_zeroing_the_default_hook_costs_more_than_a_nat():
    with torch.no_grad():
        zeroed = bridge().run_with_hooks(held_out_rows(), fwd_hooks=[(HOOK_NAME, lambda acts, hook: torch.zeros_like(acts))])
    assert mean_loss(zeroed) > mean_loss(clean_logits()) + 1.0


def test_the_model_reads_more_than_the_last_two_tokens():
    rows, places = held_out_rows(), range(100, N_CTX)
    last_two = torch.cat([torch.cat([rows[:, :1], rows[:, i - 2 : i]], dim=1) for i in places])
    targets = torch.cat([rows[:, i] for i in places])
    with torch.no_grad():
        from_two = cross_entropy(bridge()(last_two)[:, -1], targets).item()
    from_all = cross_entropy(torch.cat([clean_logits()[:, i - 1] for i in places]), targets).item()
    assert from_all < from_two - 0.2


@settings(max_examples=200, deadline=None)
@given(st.text())
@example("caf\u00e9 \u4f60\u597d \U0001f642\t\n\x00 , x 's")
@example("trailing space , and  two <|endoftext|>")
def test_tokenizer_gives_any_text_back(text: str):
    assert tokenizer().decode(tokenizer()(text)["input_ids"]) == text


def test_bos_is_one_token_that_no_ordinary_text_contains():
    assert tokenizer()("<|endoftext|>")["input_ids"] == [tokenizer().bos_token_id]
    assert not any("<|endoftext|>" in text for text in texts())


@pytest.mark.parametrize("share", [(0.0, 0.4), (0.4, 0.8), (0.9, 0.95), (0.95, 1.0)])
def test_every_stretch_of_the_text_holds_both_sources(share: tuple[float, float]):
    sources = pq.read_table(TEXT_FILE).column("source").to_pylist()
    part = Counter(sources[int(share[0] * len(sources)) : int(share[1] * len(sources))])
    assert set(part) == {"kjv", "jargon"}
    assert min(part.values()) > 0.2 * part.total()


def test_the_whole_king_james_text_and_lexicon_are_there_without_verse_numbers():
    table = pq.read_table(TEXT_FILE)
    assert table.column_names == ["text", "source"]
    by_source = {name: [] for name in ("kjv", "jargon")}
    for row in table.to_pylist():
        by_source[row["source"]].append(row["text"])
    assert len(by_source["kjv"]) == 1189
    assert sum(text.count("\n") for text in by_source["kjv"]) == 31102
    verses = [verse for text in by_source["kjv"] for verse in text.split("\n")[1:]]
    assert not any(character.isdigit() for verse in verses for character in verse)
    assert any(
        text.startswith("Genesis 1\nIn the beginning God created the heaven and the earth.") for text in by_source["kjv"]
    )
    entries = [line for text in by_source["jargon"] for line in text.split("\n") if line.startswith(":")]
    assert len(entries) >= 2300
