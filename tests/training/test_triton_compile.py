"""The Triton kernels compile for the GPUs that clouds rent, without one at hand."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")

# In a process of its own: kernels that were defined under the interpreter cannot be compiled.
_COMPILE = """
import inspect, json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from prolu_tune.training import triton_kernels as kernels

# What triton_step passes, by argument; other pointers are to float32, other numbers int32.
TYPES = dict.fromkeys(("counts_ptr", "latents_ptr", "tokens_ptr", "offsets_ptr"), "*i32")
TYPES |= dict.fromkeys(("eps", "penalty_scale", "two_over_batch", "step_size"), "fp32")
TYPES |= dict.fromkeys(("root_correction", "beta1_left", "beta2_left"), "fp32") | {"order_ptr": "*i64"}
SHAPES = {"BLOCK": 1024, "TILE": 8, "ROWS": 32, "COLUMNS": 32}
operand, capability = sys.argv[1], int(sys.argv[2])
done = []
for name in ("count_active", "compact_active", "decode", "latent_gradients", "update_decoder", "update_matrix"):
    kernel = getattr(kernels, name)
    types, constants = {}, {}
    for argument in inspect.signature(kernel.fn).parameters:
        if argument.isupper():
            constants[argument] = SHAPES.get(argument, 2 if argument == "NONLINEARITY" else 1)
            types[argument] = "constexpr"
        elif argument in ("W_dec_ptr", "centred_ptr", "grad_recon_ptr"):
            types[argument] = "*" + operand
        else:
            types[argument] = TYPES.get(argument, "*fp32" if argument.endswith("_ptr") else "i32")
    if name == "latent_gradients":
        types["offsets_ptr"] = "*i64"
    made = triton.compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", capability, 32))
    done.append([name, len(made.asm["cubin"])])
print(json.dumps(done))
"""


@pytest.mark.parametrize(("capability", "operand"), [(80, "bf16"), (86, "fp32"), (89, "bf16"), (90, "bf16")])
def test_every_kernel_becomes_machine_code(tmp_path, capability, operand):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _COMPILE, operand, str(capability)]
    done = subprocess.run(
        command, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = dict(json.loads(done.stdout.splitlines()[-1]))
    assert len(kernels) == 6
    assert min(kernels.values()) > 0
