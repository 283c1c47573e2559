"""A seeded simulator: the real searcher, journal, outbox and lease code on a fake clock, a fake disk and a fake server.

One Python process lives through many lives of a driver. Nothing of `prolu_tune` is replaced but Ray's loop, the
arithmetic of training, the language model, MLflow's server, the clock, threads, and what a disk remembers of a crash.
"""
