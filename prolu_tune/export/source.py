"""What an export starts from: the autoencoder of a folder of ours, with its configuration and metrics."""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from prolu_tune import __version__
from prolu_tune.config.trial import TrialConfig
from prolu_tune.errors import InputError
from prolu_tune.sae.folder import load_sae_folder, read_sae_config
from prolu_tune.sae.model import SparseAutoencoder

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")


@dataclass(frozen=True, kw_only=True)
class TrainedSae:
    """An autoencoder and everything that is known about how it came to be."""

    sae: SparseAutoencoder
    config: TrialConfig
    metrics: dict[str, float | None]
    versions: dict[str, str]

    @property
    def label(self) -> str:
        """The trial in a few words, such as `prolu_ste+l1, coefficient 0.32, seed 0`."""
        return f"{self.config.sae.architecture}, coefficient {self.config.training.l1_coefficient:.4g}, seed {self.config.seed}"

    @property
    def model_name(self) -> str:
        """The language model: its hub name, or the last part of its folder's name (a path is nobody else's business)."""
        return _public_name(self.config.activations.model)

    @property
    def dataset_name(self) -> str:
        """The data set: its hub name, or the last part of its path."""
        return _public_name(self.config.activations.dataset)

    def provenance(self) -> dict[str, object]:
        """Returns where the autoencoder comes from, for the metadata of an export; JSON values only."""
        return {
            "trained_by": f"prolu-tune {__version__}",
            "architecture": self.config.sae.architecture,
            "l1_coefficient": self.config.training.l1_coefficient,
            "lr": self.config.training.lr,
            "seed": self.config.seed,
            "training_tokens": self.config.training.num_tokens,
            "activation_normalization": self.config.sae.normalization,
            "metrics": dict(sorted(self.metrics.items())),
            "versions": dict(sorted(self.versions.items())),
        }


def read_trained(folder: Path) -> TrainedSae:
    """Returns the autoencoder of a folder of ours.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    sae = load_sae_folder(folder)
    document = read_sae_config(folder)
    try:
        config = TrialConfig.model_validate(document["config"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{folder}: config.{where} in config.json: {first['msg']}; export with the version that trained it"
        ) from error
    metrics, versions = document.get("metrics"), document.get("versions")
    return TrainedSae(
        sae=sae,
        config=config,
        metrics=metrics if isinstance(metrics, dict) else {},
        versions=versions if isinstance(versions, dict) else {},
    )


def is_hub_name(name: str) -> bool:
    """Whether a model or data set is named as the hub names it, as opposed to a path or to what is bundled here."""
    return name != "embedded" and HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def _public_name(name: str) -> str:
    return name if name == "embedded" or is_hub_name(name) else Path(name).name
