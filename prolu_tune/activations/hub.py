"""Data sets on the Hugging Face hub, streamed shard by shard; nothing but the shards in use is downloaded."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from prolu_tune.activations.documents import DOCUMENTS_PER_PIECE, Piece, checked_column, choose_column
from prolu_tune.activations.quiet import quiet_libraries
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError, SurroundingsError


class HubShards:
    """The shards of a streamed data set, each readable on its own and always in the same order."""

    def __init__(self, dataset: Any, *, name: str, column: str | None, commit: str) -> None:
        """Args:
        dataset: a `datasets.IterableDataset`.
        name: for messages.
        column: with the documents; None looks for the usual ones.
        commit: the data set's git commit, its identity.
        """
        self._dataset = dataset
        self._column = column
        self.name = name
        self.commit = commit
        self.num_shards = int(dataset.num_shards)

    def read(self, shard: int) -> Iterator[Piece]:
        """Yields the documents of one shard.

        Raises:
            InputError: if the column is missing or holds neither text nor ids.
            SurroundingsError: if the hub fails on the way.
        """
        part = self._dataset.shard(num_shards=self.num_shards, index=shard, contiguous=True).with_format("arrow")
        batches = iter(part.iter(batch_size=DOCUMENTS_PER_PIECE))
        while True:
            try:
                table: pa.Table = next(batches)
            except StopIteration:
                return
            except (OSError, RuntimeError) as error:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise SurroundingsError(
                    f"data set {self.name}, shard {shard} of {self.num_shards}: reading failed ({first}); "
                    "run the same command again"
                ) from error
            column = choose_column(table.column_names, column=self._column, where=f"data set {self.name}")
            array = table.column(column).combine_chunks()
            chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
            for chunk in chunks:
                yield Piece(checked_column(chunk, where=f"data set {self.name}", column=column))


def open_hub(config: ActivationConfig) -> HubShards:
    """Returns a configuration's hub data set, pinned to one commit.

    Raises:
        InputError: if the hub has no such data set, revision or split.
        SurroundingsError: if the hub cannot be reached.
    """
    quiet_libraries()
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    datasets.disable_progress_bars()
    name, revision = config.dataset, config.dataset_revision
    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
        assert commit is not None
        stream = datasets.load_dataset(name, split=config.dataset_split, revision=commit, streaming=True)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise InputError(
            f"activations.dataset {name!r} is neither a file or folder here nor a data set on the Hugging Face hub{at} "
            "(or it needs a login); check the path or the name"
        ) from error
    except ValueError as error:
        raise InputError(f"activations.dataset {name!r} cannot be streamed: {(str(error).splitlines() or [''])[0]}") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, RuntimeError) as error:
        raise SurroundingsError(
            f"activations.dataset {name!r} is not a file or folder here, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}); check the path, or the network"
        ) from error
    return HubShards(stream, name=name, column=config.column, commit=commit)
