"""Tier c of the proof: real sweeps with real faults, followed by the same command, compared with an undisturbed run."""
