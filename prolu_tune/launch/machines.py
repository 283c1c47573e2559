"""GPU machines that clouds rent, as far as the cluster files and their check need them: how many GPUs of which kind.

Source: the instance-type pages of AWS (EC2 accelerated computing) and of Google Cloud (GPU machine types), November 2026.
A type that is missing here can be added in a line; a file with an unknown one is refused, since a typo in it would only
show when the first worker does not start.
"""

AWS_GPUS: dict[str, tuple[int, str]] = {
    **{f"g4dn.{size}": (1, "T4") for size in ("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge")},
    "g4dn.12xlarge": (4, "T4"),
    "g4dn.metal": (8, "T4"),
    **{f"g5.{size}": (1, "A10G") for size in ("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge")},
    "g5.12xlarge": (4, "A10G"),
    "g5.24xlarge": (4, "A10G"),
    "g5.48xlarge": (8, "A10G"),
    **{f"g6.{size}": (1, "L4") for size in ("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge")},
    "g6.12xlarge": (4, "L4"),
    "g6.24xlarge": (4, "L4"),
    "g6.48xlarge": (8, "L4"),
    **{f"g6e.{size}": (1, "L40S") for size in ("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge")},
    "g6e.12xlarge": (4, "L40S"),
    "g6e.24xlarge": (4, "L40S"),
    "g6e.48xlarge": (8, "L40S"),
    "p3.2xlarge": (1, "V100"),
    "p3.8xlarge": (4, "V100"),
    "p3.16xlarge": (8, "V100"),
    "p4d.24xlarge": (8, "A100"),
    "p4de.24xlarge": (8, "A100"),
    "p5.4xlarge": (1, "H100"),
    "p5.48xlarge": (8, "H100"),
    "p5e.48xlarge": (8, "H200"),
    "p5en.48xlarge": (8, "H200"),
}
"""Instance type to (GPUs, model)."""

AWS_CPU_FAMILIES: tuple[str, ...] = (
    *("t3", "t3a", "m5", "m5a", "m6i", "m6a", "m7i", "m7a", "m8i"),
    *("c5", "c5a", "c6i", "c6a", "c7i", "c7a", "c8i", "r5", "r6i", "r7i"),
)
"""Families of instances without a GPU that a head or a CPU worker may be; all of them x86."""

GCP_GPUS: dict[str, tuple[int, str]] = {
    **{f"g2-standard-{cpus}": (1, "L4") for cpus in (4, 8, 12, 16, 32)},
    "g2-standard-24": (2, "L4"),
    "g2-standard-48": (4, "L4"),
    "g2-standard-96": (8, "L4"),
    **{f"a2-highgpu-{count}g": (count, "A100") for count in (1, 2, 4, 8)},
    **{f"a2-ultragpu-{count}g": (count, "A100 80GB") for count in (1, 2, 4, 8)},
    **{f"a3-highgpu-{count}g": (count, "H100") for count in (1, 2, 4, 8)},
    "a3-megagpu-8g": (8, "H100"),
    "a3-ultragpu-8g": (8, "H200"),
}
"""Machine type to (GPUs, model); an n1 takes its GPUs from `guestAccelerators`."""

GCP_ACCELERATORS: tuple[str, ...] = ("nvidia-tesla-t4", "nvidia-tesla-v100", "nvidia-tesla-p100", "nvidia-tesla-p4")
"""What an n1 machine can be given."""
GCP_CPU_FAMILIES: tuple[str, ...] = ("e2", "n1", "n2", "n2d", "n4", "c3", "c3d", "c4", "t2d")
