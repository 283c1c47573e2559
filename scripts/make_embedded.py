"""Rebuilds `prolu_tune/embedded`: the text, the tokenizer and the small language model of the default sweep.

    apt-get install bible-kjv bible-kjv-text jargon-text
    nice -n 5 python scripts/make_embedded.py all --compile --bfloat16

The stages `text`, `tokenizer`, `train` and `measure` can also be run one by one, in this order; each reads what the
one before it left in the output folder. Seeds are fixed: the same versions of packages and libraries give the same
text and tokenizer, and weights that differ by what floating point makes of another processor.
"""

import argparse
import json
import math
import os
import random
import time
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from embedded_text import read_bible, read_jargon
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "prolu_tune" / "embedded"
BOS = "<|endoftext|>"
HOOK_NAME = "blocks.2.hook_resid_pre"
# The sweep cuts its rows by token count, this script by document: one percent keeps the two from overlapping.
HELD_OUT_FRACTION, SPLIT_MARGIN = 0.10, 0.01


def write_text(output: Path) -> None:
    """Leaves every document, shuffled with a fixed seed so that any stretch holds both sources, in `text.parquet`."""
    documents = read_bible() + read_jargon()
    random.Random(0).shuffle(documents)
    table = pa.table({"text": [d.text for d in documents], "source": [d.source for d in documents]})
    path, partial = output / "text.parquet", output / "text.parquet.tmp"
    pq.write_table(table, partial, compression="zstd", compression_level=19)
    replace(partial, path)
    print(f"{path.name}: {len(documents)} documents, {path.stat().st_size:,} bytes")


def replace(partial: Path, path: Path) -> None:
    """Puts a complete, flushed file in the place of another."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load_texts(output: Path) -> tuple[list[str], list[str]]:
    """The texts of the text file that may be trained on, and those of its last tenth, which may not.

    A text counts as held out when it reaches past 89 % of the documents or of the characters, so the last 10 % of
    either belong to it whole.
    """
    texts: list[str] = pq.read_table(output / "text.parquet").column("text").to_pylist()
    share = 1 - HELD_OUT_FRACTION - SPLIT_MARGIN
    budget = share * sum(map(len, texts))
    num_train, num_characters = 0, 0
    for text in texts[: math.floor(share * len(texts))]:
        num_characters += len(text)
        num_train += num_characters <= budget
    return texts[:num_train], texts[math.ceil((1 - HELD_OUT_FRACTION) * len(texts)) :]


def write_tokenizer(output: Path, vocab_size: int) -> None:
    """Leaves a byte-level BPE tokenizer, learned from the training documents, in `model/`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(load_texts(output)[0], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, unk_token=BOS, clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(output / "model")
    print(f"tokenizer: {len(fast)} tokens")


def token_rows(tokenizer: PreTrainedTokenizerFast, texts: list[str], n_ctx: int, offset: int = 0) -> Tensor:
    """The texts, each after a BOS, as one stream cut into rows of `n_ctx` tokens whose position 0 is BOS."""
    bos: int = tokenizer.get_vocab()[BOS]
    stream = [token for ids in tokenizer(texts)["input_ids"] for token in (bos, *ids)][offset:]
    rows = torch.tensor(stream[: len(stream) // n_ctx * n_ctx]).view(-1, n_ctx)
    rows[:, 0] = bos
    return rows


def next_token_loss(logits: Tensor, rows: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the rows' next-token predictions."""
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int = 50) -> float:
    """Linear warm-up, then a cosine from 1 to 0.02 at the last step."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return min(1.0, (step + 1) / warmup_steps) * (0.02 + 0.98 * cosine)


def new_model(settings: argparse.Namespace) -> GPT2LMHeadModel:
    """An untrained GPT-2 of the wanted size, with tied embeddings and without dropout."""
    config = GPT2Config(
        vocab_size=settings.vocab_size,
        n_positions=settings.n_ctx,
        n_embd=settings.d_model,
        n_layer=settings.num_layers,
        n_head=settings.num_heads,
        # The same function as GPT-2's gelu_new, but one fused kernel; the saved configuration says gelu_new.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def train(output: Path, settings: argparse.Namespace) -> None:
    """Trains on the training documents and leaves the weights in `model/`, also at intervals on the way.

    Every pass over the documents cuts them at another offset.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output / "model")
    texts, _ = load_texts(output)
    model = new_model(settings)
    optimizers = new_optimizers(model, settings)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def loss_of(rows: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if settings.bfloat16 else nullcontext():
            logits = model.lm_head(model.transformer(rows).last_hidden_state)
        return next_token_loss(logits, rows)

    loss_of_rows = torch.compile(loss_of) if settings.compile else loss_of
    rows, mean_loss, start = torch.empty(0, settings.n_ctx, dtype=torch.long), 0.0, time.monotonic()
    for step in range(settings.steps):
        if len(rows) < settings.batch_size:
            offset = int(torch.randint(settings.n_ctx, (1,), generator=generator))
            rows = token_rows(tokenizer, texts, settings.n_ctx, offset)
            rows = rows[torch.randperm(len(rows), generator=generator)]
        batch, rows = rows[: settings.batch_size], rows[settings.batch_size :]
        loss = loss_of_rows(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = learning_rate_factor(step, settings.steps)
        for optimizer, group_rates in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, group_rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        mean_loss += (loss.item() - mean_loss) / min(step + 1, 100)
        if (step + 1) % 100 == 0:
            tokens = (step + 1) * batch.numel()
            wall_s = time.monotonic() - start
            print(f"step {step + 1}: loss {mean_loss:.3f}, {tokens:,} tokens, {wall_s:.0f} s", flush=True)
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save_model(model, output / "model")


def new_optimizers(model: GPT2LMHeadModel, settings: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices and AdamW for the rest.

    AdamW alone was at 5.18 nats after 200 steps of 16 rows (documents kept aside from the training ones), this at 5.02.
    """
    blocks = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not q for q in blocks)]
    return [
        torch.optim.Muon(blocks, lr=settings.muon_lr, weight_decay=0.1),
        torch.optim.AdamW(others, lr=settings.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def save_model(model: GPT2LMHeadModel, folder: Path) -> None:
    """Leaves the weights in float16 and a configuration that has them loaded as float32."""
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.transformer.state_dict().items()}
    save_file(state, folder / "model.safetensors.tmp", metadata={"format": "pt"})
    config = model.config.to_dict() | {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "dtype": "float32",
        "use_cache": True,
    }
    (folder / "config.json.tmp").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in ("model.safetensors", "config.json"):
        replace(folder / f"{name}.tmp", folder / name)


def measure(output: Path, settings: argparse.Namespace) -> None:
    """Prints as JSON the held-out losses in nats per token: the model's, a unigram's, and with the hook zeroed."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output / "model")
    train_texts, held_out = load_texts(output)
    rows = token_rows(tokenizer, held_out, settings.n_ctx)
    counts = torch.bincount(token_rows(tokenizer, train_texts, settings.n_ctx).flatten(), minlength=len(tokenizer)) + 1.0
    bridge = TransformerBridge.boot_transformers(str(output / "model"), device="cpu")
    bridge.enable_compatibility_mode()

    def mean_loss(fwd_hooks: list) -> float:
        losses = [next_token_loss(bridge.run_with_hooks(part, fwd_hooks=fwd_hooks), part) for part in rows.split(32)]
        return sum(loss.item() * len(part) for loss, part in zip(losses, rows.split(32), strict=True)) / len(rows)

    with torch.no_grad():
        figures = {
            "parameters": sum(p.numel() for p in GPT2LMHeadModel.from_pretrained(output / "model").parameters()),
            "held_out_documents": len(held_out),
            "held_out_tokens": rows.numel(),
            "ce_loss": mean_loss([]),
            "ce_loss_zero": mean_loss([(HOOK_NAME, lambda acts, hook: torch.zeros_like(acts))]),
            "ce_loss_unigram": -(counts / counts.sum()).log()[rows[:, 1:]].mean().item(),
        }
    print(json.dumps(figures, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["all", "text", "tokenizer", "train", "measure"])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--vocab-size", type=int, default=3072)
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--n-ctx", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=8, help="rows per step")
    parser.add_argument("--muon-lr", type=float, default=0.015)
    parser.add_argument("--adamw-lr", type=float, default=3e-3)
    parser.add_argument("--save-every", type=int, default=250, help="steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="matrix products in bfloat16, where the CPU has them")
    parser.add_argument("--compile", action="store_true", help="torch.compile; needs a C++ compiler")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    output: Path = settings.output
    (output / "model").mkdir(parents=True, exist_ok=True)
    if settings.stage in ("all", "text"):
        write_text(output)
    if settings.stage in ("all", "tokenizer"):
        write_tokenizer(output, settings.vocab_size)
    if settings.stage in ("all", "train"):
        train(output, settings)
    if settings.stage in ("all", "measure"):
        measure(output, settings)


if __name__ == "__main__":
    main()
