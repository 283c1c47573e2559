"""Our own folder: the same tensors and configuration, checked on the way."""

from pathlib import Path

from prolu_tune.export.source import TrainedSae
from prolu_tune.sae.folder import save_sae


def write(trained: TrainedSae, folder: Path) -> None:
    """Writes `sae.safetensors` and `config.json` in place of an existing folder.

    Raises:
        OSError: if they cannot be written.
    """
    config = trained.config.model_dump(mode="json")
    save_sae(trained.sae, folder, config=config, versions=trained.versions, metrics=dict(trained.metrics))
