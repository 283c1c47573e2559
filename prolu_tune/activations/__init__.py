"""From text and a language model to a stream of activations, made once per node and kept in memory-mapped files."""
