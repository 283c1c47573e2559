"""Every failpoint there is: what a simulated process does to the outside world, by the process, the operation and the file."""

import re

FAILPOINTS: tuple[str, ...] = (
    "driver: create artifact",
    "driver: create lock",
    "driver: create space.json.tmp",
    "driver: create study.journal",
    "driver: create study.journal.tmp",
    "driver: create study.journal.torn.tmp",
    "driver: create tracked.tmp",
    "driver: create write test",
    "driver: fsync artifact",
    "driver: fsync space.json.tmp",
    "driver: fsync storage",
    "driver: fsync study.journal",
    "driver: fsync study.journal.tmp",
    "driver: fsync study.journal.torn.tmp",
    "driver: fsync sweep folder",
    "driver: fsync sweeps",
    "driver: fsync tracked.tmp",
    "driver: link artifact",
    "driver: mkdir artifact",
    "driver: mkdir sweep folder",
    "driver: mkdir sweeps",
    "driver: mkdir trials",
    "driver: rename space.json",
    "driver: rename study.journal",
    "driver: rename study.journal.torn",
    "driver: rename tracked",
    "driver: truncate lock",
    "driver: truncate space.json.tmp",
    "driver: truncate study.journal",
    "driver: truncate tracked.tmp",
    "driver: truncate write test",
    "driver: unlink artifact",
    "driver: unlink space.json.tmp",
    "driver: unlink study.journal.tmp",
    "driver: unlink study.journal.torn.tmp",
    "driver: unlink tracked.tmp",
    "driver: unlink write test",
    "driver: write artifact",
    "driver: write lock",
    "driver: write space.json.tmp",
    "driver: write study.journal",
    "driver: write study.journal.tmp",
    "driver: write study.journal.torn.tmp",
    "driver: write tracked.tmp",
    "driver: write write test",
    "mlflow: create_experiment",
    "mlflow: create_run",
    "mlflow: delete_run",
    "mlflow: delete_tag",
    "mlflow: get_experiment_by_name",
    "mlflow: get_run",
    "mlflow: log_batch",
    "mlflow: log_dict",
    "mlflow: search_runs",
    "mlflow: set_tag",
    "mlflow: set_terminated",
    "mlflow: update_run",
    "trial: create checkpoint.tmp",
    "trial: create error.txt.tmp",
    "trial: create lease",
    "trial: create metrics.jsonl",
    "trial: create metrics.jsonl.tmp",
    "trial: create sae config.json.tmp",
    "trial: create sae sae.safetensors.tmp",
    "trial: create trained.json.tmp",
    "trial: evaluate",
    "trial: fsync checkpoint.tmp",
    "trial: fsync checkpoints",
    "trial: fsync error.txt.tmp",
    "trial: fsync metrics.jsonl",
    "trial: fsync metrics.jsonl.tmp",
    "trial: fsync sae",
    "trial: fsync sae config.json.tmp",
    "trial: fsync sae sae.safetensors.tmp",
    "trial: fsync sae.tmp",
    "trial: fsync trained.json.tmp",
    "trial: fsync trial folder",
    "trial: fsync trials",
    "trial: mkdir checkpoints",
    "trial: mkdir sae.tmp",
    "trial: mkdir trial folder",
    "trial: rename checkpoint",
    "trial: rename error.txt",
    "trial: rename metrics.jsonl",
    "trial: rename sae",
    "trial: rename sae config.json",
    "trial: rename sae sae.safetensors",
    "trial: rename sae.old",
    "trial: rename trained.json",
    "trial: report",
    "trial: rmdir checkpoints",
    "trial: rmdir sae.old",
    "trial: rmdir sae.tmp",
    "trial: step",
    "trial: truncate error.txt.tmp",
    "trial: truncate metrics.jsonl",
    "trial: truncate metrics.jsonl.tmp",
    "trial: truncate sae config.json.tmp",
    "trial: truncate trained.json.tmp",
    "trial: unlink checkpoint",
    "trial: unlink checkpoint.tmp",
    "trial: unlink error.txt.tmp",
    "trial: unlink metrics.jsonl.tmp",
    "trial: unlink sae config.json",
    "trial: unlink sae config.json.tmp",
    "trial: unlink sae sae.safetensors",
    "trial: unlink sae sae.safetensors.tmp",
    "trial: unlink trained.json.tmp",
    "trial: write checkpoint.tmp",
    "trial: write error.txt.tmp",
    "trial: write metrics.jsonl",
    "trial: write metrics.jsonl.tmp",
    "trial: write sae config.json.tmp",
    "trial: write sae sae.safetensors.tmp",
    "trial: write trained.json.tmp",
)


def kind_of(parts: list[str]) -> str:
    """Returns the name of a kind of file, such as `metrics.jsonl` for that of any trial."""
    if not parts:
        return "storage"
    if parts[0] == "artifacts":
        return "artifact"
    name = parts[-1]
    if name.startswith("checkpoint-"):
        return "checkpoint.tmp" if name.endswith(".tmp") else "checkpoint"
    if name.startswith("study.journal.lock"):
        return "journal lock"
    if name.startswith(".write-test"):
        return "write test"
    if len(parts) > 1 and parts[-2] == "trials":
        return "trial folder"
    if len(parts) > 1 and parts[-2] == "sweeps":
        return "sweep folder"
    if len(parts) > 1 and parts[-2].startswith("sae"):
        return f"sae {re.sub(r'[^a-z.]', '', name)}"
    return name
