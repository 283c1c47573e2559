"""Measurements, each a module of its own: `python -m prolu_tune.bench NAME`."""
