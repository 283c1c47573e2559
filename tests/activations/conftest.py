"""The tiny language models and texts, for all tests in this folder."""

import pytest

pytest.register_assert_rewrite("tiny_language_models")  # else pytest warns where another test file names it as a plugin

from tiny_language_models import gpt2_folder, llama_folder, make_config, text_file  # noqa: E402 - must follow the line above

__all__ = ["gpt2_folder", "llama_folder", "make_config", "text_file"]
