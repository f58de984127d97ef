"""The time of one block within the model, from the difference between forwards of two depths.

All blocks share one set of weights. It has hundreds of MB, more than any cache, so it is read from memory as in the
model.
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from experiments.benchmarks.gpu import mlx_model
from experiments.benchmarks.gpu.depth import measure_depths
from experiments.benchmarks.gpu.part import Job


def run(job: Job) -> None:
    shallow = replace(job.shape, config=replace(job.shape.config, num_layers=1))
    model = mlx_model.made_transformer(shallow, mx.bfloat16)
    inputs = [mlx_model.made_inputs(job.shape, side, mx.bfloat16) for side in job.shape.forward_sides]
    names = ("ours fast", "ours plain", "ours compiled blocks")
    measure_depths(job, model, job.shape.piece_depths, inputs, names)
