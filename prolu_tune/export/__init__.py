"""A trained autoencoder in the folders that other tools read, and on the Hugging Face hub."""

from prolu_tune.export.formats import FORMATS, export_folder

__all__ = ["FORMATS", "export_folder"]
