"""The default model and text, which need no network: `MODEL_DIR` and `TEXT_FILE`.

`MODEL_DIR` is a folder in Hugging Face format with a four-block GPT-2 of 1.2 million parameters and its tokenizer.
`TEXT_FILE` is a Parquet file with the columns `text` and `source` (`kjv` or `jargon`). The model never saw the last
tenth of its rows. Both are made by `scripts/make_embedded.py`; sources, licences and figures are in the README beside
this file.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
"""The language model that `activations.model: embedded` means."""
TEXT_FILE: Path = Path(__file__).parent / "text.parquet"
"""The text that `activations.dataset: embedded` means."""
