"""The tiny language models and texts, for all tests in this folder."""

from tiny_language_models import gpt2_folder, llama_folder, make_config, text_file

__all__ = ["gpt2_folder", "llama_folder", "make_config", "text_file"]
