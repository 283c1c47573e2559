"""Shared by all tests: no telemetry, no network, small thread pools."""

import os

os.environ.update(
    {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Read when triton is first imported, by whatever test; its kernels run on the CPU then. Without effect on torch.
        "TRITON_INTERPRET": "1",
    }
)
