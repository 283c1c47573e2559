"""Hostile input: mutated files and servers' answers against every reader, with canaries for what must never happen."""
