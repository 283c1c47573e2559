"""Running a sweep: the study that is its truth, Ray Tune that runs its trials, MLflow that is told its results."""
