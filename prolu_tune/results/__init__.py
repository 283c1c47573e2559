"""What sweeps found, read from MLflow alone: records, queries, frontiers. Needs neither torch nor Ray."""
