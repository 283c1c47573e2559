"""Sweeps on a cluster: finds it, opens a tunnel to its head, hands it the sweep as a Ray job and follows that."""
