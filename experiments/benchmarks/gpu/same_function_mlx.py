"""Tests whether the arms compute one function: two blocks of full width with equal weights and inputs in each library.

This part runs on MLX and writes weights, inputs and outputs to files, which `same_function_torch` compares. In
bfloat16, mflux also rounds the frequencies of the timestep to bfloat16. This changes their angles by up to 1 rad, so
mflux differs more than the others.
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
from mlx.utils import tree_flatten

from experiments.benchmarks.gpu import mlx_model
from experiments.benchmarks.gpu.forward_mlx import OURS
from experiments.benchmarks.gpu.mflux_model import mflux
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.rounds import record_error

BLOCKS = 2
TIMESTEP = 0.5
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


def run(job: Job) -> None:
    shape = replace(job.shape, config=replace(job.shape.config, num_layers=BLOCKS))
    model = mlx_model.made_transformer(shape, mx.bfloat16)
    inputs = mlx_model.made_inputs(shape, shape.forward_sides[0], mx.bfloat16)
    mx.save_safetensors(str(job.scratch / "weights.safetensors"), dict(tree_flatten(model.parameters())))
    given = {"latents": inputs.latents, "text": inputs.text}
    mx.save_safetensors(str(job.scratch / "inputs.safetensors"), given)
    outputs = {}
    for dtype_name, dtype in DTYPES.items():
        model.set_dtype(dtype)
        one = inputs._replace(latents=inputs.latents.astype(dtype), text=inputs.text.astype(dtype))
        openers = {
            f"{name}{suffix}": mlx_model.ours(model, techniques, of)
            for name, techniques in OURS.items()
            for suffix, of in shape.module("ours").PASSES.items()
        }
        openers["mflux"] = mflux(shape, model)
        for name, opener in openers.items():
            try:
                with opener() as forward:
                    output = forward(one, TIMESTEP).astype(mx.float32)
                    mx.eval(output)
            except Exception as error:
                record_error(job.writer, {"arm": name, "dtype": dtype_name, "what": "same function"}, error)
                continue
            outputs[f"{name}/{dtype_name}"] = output
    mx.save_safetensors(str(job.scratch / "outputs.safetensors"), outputs)
