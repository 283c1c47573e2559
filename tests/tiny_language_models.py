"""Tiny language models and texts, made once per test run: random weights, real file formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prolu_tune.config.trial import ActivationConfig

WORDS = ["sparse", "dense", "latent", "gate", "token", "model", "norm", "bias", "zebra", "quartz", "the", "of", "and"]


def sentences(count: int, *, offset: int = 0) -> list[str]:
    """Returns texts that differ from each other, without randomness."""
    out = []
    for i in range(offset, offset + count):
        chosen = [WORDS[(i * 7 + k * k * 3 + k * (i % 5)) % len(WORDS)] for k in range(20 + i % 17)]
        out.append(f"Document {i}: " + " ".join(chosen) + ".")
    return out


def save_tokenizer(folder: Path) -> None:
    """Writes a byte-level BPE tokenizer of 300 ids, id 0 being BOS and EOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sentences(40), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>").save_pretrained(folder)


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of 3 layers, 32 wide, with a tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from prolu_tune.activations.quiet import quiet_loading

    folder = tmp_path_factory.mktemp("gpt2")
    with quiet_loading(offline=True):
        torch.manual_seed(0)
        shape = GPT2Config(n_layer=3, n_head=4, n_embd=32, vocab_size=300, n_positions=64, bos_token_id=0, eos_token_id=0)
        model = GPT2LMHeadModel(shape)
        for weight in model.parameters():  # far from a fresh model's near-zero output, so that a wrong splice shows
            torch.nn.init.normal_(weight, std=0.2)
        model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 3 layers, 32 wide, with grouped heads and without a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from prolu_tune.activations.quiet import quiet_loading

    folder = tmp_path_factory.mktemp("llama")
    with quiet_loading(offline=True):
        torch.manual_seed(1)
        shape = LlamaConfig(
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            hidden_size=32,
            intermediate_size=48,
            vocab_size=300,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
        )
        model = LlamaForCausalLM(shape)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON lines of 240 short documents."""
    file = tmp_path_factory.mktemp("data") / "text.jsonl"
    file.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(sentences(240))))
    return file


@pytest.fixture
def make_config(gpt2_folder: Path, text_file: Path) -> Callable[..., ActivationConfig]:
    """Returns a function that makes configurations of the tiny model and text."""

    def make(**changes: Any) -> ActivationConfig:
        defaults: dict[str, Any] = {
            "model": str(gpt2_folder),
            "hook_name": "blocks.1.hook_resid_pre",
            "dataset": str(text_file),
            "context_length": 16,
            "chunk_tokens": 1024,
            "train_range": (0.0, 0.6),
            "eval_range": (0.6, 1.0),
            "lm_batch_size": 8,
            "lm_threads": 1,
        }
        return ActivationConfig(**defaults | changes)

    return make
