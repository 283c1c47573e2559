"""One store for all tests of queries: making one takes seconds."""

from stored_sweeps import stored

__all__ = ["stored"]
