"""The rows of a data set: which belong to training and which to evaluation, in which seeded order.

A data set is one or more shards (a local one is a single shard, a hub one has its own). Row r of m in shard s of n
stands at (s + r / m) / n; `train_range` and `eval_range` are ranges of that number, so they never share a row and
a shard's rows can be assigned without having seen any other shard.

The order of an epoch: shards in a seeded order, `SHARDS_PER_GROUP` at a time, the rows of such a group in a seeded
permutation. A local data set has one group, so its rows are permuted as a whole.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prolu_tune.activations.arrow_files import DamagedFileError, exclusive, find, publish
from prolu_tune.activations.cache import ignore
from prolu_tune.activations.digests import digest_of, files_digest
from prolu_tune.activations.documents import Progress, local_files, read_files
from prolu_tune.activations.hub import HubShards, open_hub
from prolu_tune.activations.model_info import HUB_NAME, ModelInfo, load_tokenizer
from prolu_tune.activations.packing import Packer, TokenFile, write_rows
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError

SHARDS_PER_GROUP = 4
"""Shards of a hub data set over which rows are permuted; they are downloaded before the first row comes out."""
PACKING_VERSION = 1

Part = Literal["train", "eval"]


def seeded_permutation(size: int, *key: int) -> np.ndarray:
    """Returns a permutation of `size` numbers that depends on the key alone."""
    # Hashed first: numpy's own SeedSequence takes (1, 2) and (1, 2, 0) for the same.
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).permutation(size)


@dataclass(frozen=True)
class DataShards:
    """A data set as shards whose token rows are made on demand."""

    name: str
    """As the person wrote it."""
    identity: str
    """Tells the rows of this data set, tokenised and cut, from any others."""
    num_shards: int
    open_shard: Callable[[int], TokenFile]
    streamed: bool
    """Shards come from the hub and only those in use are read."""


class TokenRows:
    """The token rows of a data set, in two parts that never overlap."""

    def __init__(self, shards: DataShards, config: ActivationConfig) -> None:
        """Reads nothing yet."""
        self.shards = shards
        self.context_length = config.context_length
        self._ranges: dict[Part, tuple[float, float]] = {"train": config.train_range, "eval": config.eval_range}
        self._seed = config.seed
        self._files: dict[int, TokenFile] = {}
        self._permuted: tuple[tuple[object, ...], np.ndarray] | None = None

    def count(self, part: Part, *, at_least: int | None = None) -> tuple[int, bool]:
        """Returns a number of rows of a part and whether these are all.

        Args:
            part: train or eval.
            at_least: stop opening shards when so many rows are known; None opens all.
        """
        total = 0
        shards = self._order(part, epoch=0)
        for seen, shard in enumerate(shards):
            low, high = self._span(part, shard)
            total += high - low
            if at_least is not None and total >= at_least:
                return total, seen + 1 == len(shards)
        return total, True

    def take(self, part: Part, *, epoch: int, start: int, count: int) -> np.ndarray:
        """Returns rows `start` to `start + count` (count, context_length), int32, of an epoch's order.

        Raises:
            InputError: if the part holds fewer rows.
        """
        out = np.empty((count, self.context_length), np.int32)
        filled = 0
        order = self._order(part, epoch=epoch)
        first = 0
        for group in range(math.ceil(len(order) / SHARDS_PER_GROUP)):
            members = order[group * SHARDS_PER_GROUP : (group + 1) * SHARDS_PER_GROUP]
            spans = [self._span(part, shard) for shard in members]
            sizes = [high - low for low, high in spans]
            size = sum(sizes)
            low, high = max(start, first), min(start + count, first + size)
            if low < high:
                chosen = self._group_order(part, epoch, group, size)[low - first : high - first]
                out[low - start : high - start] = self._read(members, spans, sizes, chosen)
                filled += high - low
            first += size
            if filled == count:
                return out
        raise InputError(
            f"{self.shards.name}: {part}_range {list(self._ranges[part])} holds {first} rows of {self.context_length} tokens, "
            f"but row {start + count - 1} was asked for; lower the number of tokens, widen {part}_range, "
            "or raise activations.epochs"
        )

    def _order(self, part: Part, *, epoch: int) -> list[int]:
        """Returns the shards that reach into a part, in the epoch's order."""
        low, high = self._ranges[part]
        count = self.shards.num_shards
        members = [shard for shard in range(count) if shard < high * count and shard + 1 > low * count]
        return [members[i] for i in seeded_permutation(len(members), 1, self._seed, epoch)] if len(members) > 1 else members

    def _group_order(self, part: Part, epoch: int, group: int, size: int) -> np.ndarray:
        key = (part, epoch, group, size)
        known = self._permuted
        if known is None or known[0] != key:
            # Taken from the local name: another thread may put its own order there at any moment.
            known = self._permuted = (key, seeded_permutation(size, 2, self._seed, int(part == "eval"), epoch, group))
        return known[1]

    def _span(self, part: Part, shard: int) -> tuple[int, int]:
        """Returns the first row of a shard in a part and the first one after it."""
        rows = self._file(shard).num_rows
        low, high = (math.ceil((edge * self.shards.num_shards - shard) * rows) for edge in self._ranges[part])
        return min(max(low, 0), rows), min(max(high, 0), rows)

    def _read(self, members: list[int], spans: list[tuple[int, int]], sizes: list[int], chosen: np.ndarray) -> np.ndarray:
        ends = np.cumsum(sizes)
        which = np.searchsorted(ends, chosen, side="right")
        out = np.empty((len(chosen), self.context_length), np.int32)
        for number, shard in enumerate(members):
            mine = which == number
            if mine.any():
                within = chosen[mine] - (ends[number] - sizes[number]) + spans[number][0]
                out[mine] = self._file(shard).rows(within)
        return out

    def _file(self, shard: int) -> TokenFile:
        if shard not in self._files:
            self._files[shard] = self.shards.open_shard(shard)
        return self._files[shard]


def open_rows(
    config: ActivationConfig,
    info: ModelInfo,
    *,
    cache_dir: Path,
    progress: Progress | None = None,
    say: Callable[[str], None] = ignore,
) -> TokenRows:
    """Returns the token rows of a configuration's data set; local text is tokenised at the first use on a node.

    Args:
        config: data set, column, context length, ranges, seed.
        info: of the model whose tokenizer and vocabulary count.
        cache_dir: tokenised rows are kept under `tokens/` in it.
        progress: told bytes done and in all while local files are tokenised.
        say: told about a damaged cache file.

    Raises:
        InputError: if the data set does not exist, is empty, or does not fit the model.
        SurroundingsError: if the hub or the disk fails.
    """
    tokenizer = load_tokenizer(info)
    packer, packing = _packer(config, info, tokenizer)
    folder = cache_dir / "tokens"
    local = _local_dataset(config)
    if local is None:
        hub = open_hub(config)
        return TokenRows(hub_shards(hub, packer, packing, folder=folder, say=say), config)
    if config.dataset_revision is not None:
        raise InputError(f"activations.dataset_revision has no effect on {config.dataset}, which is local; remove it")
    name = config.dataset
    identity = digest_of({**packing, "files": files_digest(local, memo=cache_dir / "digests"), "column": config.column})

    def blocks() -> Any:
        return packer.rows(read_files(local, column=config.column, progress=progress), where=name)

    def open_shard(_: int) -> TokenFile:
        file = _token_file(folder, identity[:32], blocks, packer, say)
        if file.num_rows == 0:
            raise InputError(f"activations.dataset {name} holds no row of {config.context_length} tokens; give more data")
        return file

    return TokenRows(DataShards(name, f"local:{identity}", 1, open_shard, streamed=False), config)


def hub_shards(
    hub: HubShards, packer: Packer, packing: dict[str, Any], *, folder: Path, say: Callable[[str], None] = ignore
) -> DataShards:
    """Returns a hub data set's shards as token rows; each is downloaded, cut and kept on disk at its first use."""
    identity = digest_of({**packing, "hub": hub.name, "commit": hub.commit, "num_shards": hub.num_shards})

    def open_shard(shard: int) -> TokenFile:
        name = f"{identity[:32]}.{shard:06d}"
        return _token_file(folder, name, lambda: packer.rows(hub.read(shard), where=f"data set {hub.name}"), packer, say)

    return DataShards(hub.name, f"hub:{identity}", hub.num_shards, open_shard, streamed=True)


def _local_dataset(config: ActivationConfig) -> list[Path] | None:
    """Returns the files of a local data set, None for a hub one."""
    if config.dataset == "embedded":
        from prolu_tune.embedded import TEXT_FILE

        return [Path(TEXT_FILE)]
    path = Path(config.dataset).expanduser()
    if path.exists():
        return local_files(config.dataset)
    if path.suffix in (".parquet", ".jsonl", ".json", ".txt", ".gz", ".zst") or not HUB_NAME.fullmatch(config.dataset):
        raise InputError(
            f"activations.dataset {config.dataset!r} is neither a file or folder here nor a name on the hub (owner/name); "
            "check the path"
        )
    return None


def _packer(config: ActivationConfig, info: ModelInfo, tokenizer: Any | None) -> tuple[Packer, dict[str, Any]]:
    """Returns the packer for a model and everything that its rows depend on besides the documents."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if tokenizer is not None and backend is None:
        tokenizer = None
    bos = tokenizer.bos_token_id if tokenizer is not None and tokenizer.bos_token_id is not None else info.bos_token_id
    eos = tokenizer.eos_token_id if tokenizer is not None else None
    if config.overwrite_bos and bos is None:
        raise InputError(
            f"activations.overwrite_bos is true, but neither {info.name} nor its tokenizer has a BOS token; "
            "set overwrite_bos to false"
        )
    written = bos if config.overwrite_bos else None
    separator = eos if eos is not None else bos
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    packing = {
        "version": PACKING_VERSION,
        "context_length": config.context_length,
        "vocab_size": info.vocab_size,
        "bos": written,
        "separator": separator,
        "tokenizer": None if backend is None else digest_of({"tokenizer": backend.to_str()}),
    }
    packer = Packer(
        context_length=config.context_length,
        vocab_size=info.vocab_size,
        tokenizer=tokenizer,
        bos_token_id=written,
        separator_id=separator,
        model=info.name,
    )
    return packer, packing


def _token_file(folder: Path, name: str, blocks: Callable[[], Any], packer: Packer, say: Callable[[str], None]) -> TokenFile:
    """Returns the token file of a name, made if it is missing and made again if it is damaged."""

    def opened(path: Path | None) -> TokenFile | None:
        if path is None:
            return None
        try:
            return TokenFile(path, context_length=packer.context_length)
        except FileNotFoundError:
            return None
        except DamagedFileError as error:
            say(f"damaged token cache file, made again: {error}")
            path.unlink(missing_ok=True)
            return None

    file = opened(find(folder, name))
    if file is not None:
        return file
    with exclusive(folder):
        file = opened(find(folder, name))
        if file is None:
            path = publish(
                folder,
                name,
                lambda target: write_rows(target, blocks(), context_length=packer.context_length, dtype=packer.dtype),
            )
            file = TokenFile(path, context_length=packer.context_length)
    return file
