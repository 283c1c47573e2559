"""A sweep: the study that is its truth, Ray Tune that runs its trials, MLflow that keeps its results, and queries on them."""
