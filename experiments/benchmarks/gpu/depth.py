"""The forward pass against the number of blocks, at the smaller size."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from experiments.benchmarks.gpu import mlx_model
from experiments.benchmarks.gpu.forward_mlx import OURS
from experiments.benchmarks.gpu.mlx_model import SEEN_TIMESTEP, Forward, Inputs, seconds_of, step_of
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.rounds import Arm, measure, record_error


def run(job: Job) -> None:
    model = mlx_model.made_transformer(job.shape, mx.bfloat16)
    inputs = mlx_model.made_inputs(job.shape, job.shape.forward_sides[0], mx.bfloat16)
    measure_depths(job, model, job.shape.depths, [inputs], ("ours fast", "ours plain"))


def measure_depths(
    job: Job, model: nn.Module, depths: tuple[int, ...], inputs: list[Inputs], names: tuple[str, ...]
) -> None:
    """Times forwards of models with `depths` blocks; the blocks of `model` are repeated if it has fewer."""
    with ExitStack() as stack:
        arms = []
        for depth in depths:
            for name in names:
                try:
                    shallow = mlx_model.first_blocks(model, depth)
                    forward = stack.enter_context(mlx_model.ours(shallow, OURS[name], step_of(job.shape))())
                except Exception as error:
                    record_error(job.writer, {"arm": name, "depth": depth}, error)
                    continue
                for one in inputs:
                    tags = {"arm": name, "depth": depth, "side": one.side}
                    arms.append(Arm(tags, partial(_sample, forward, one)))
        measure(job.writer, arms, job.deadline, job.shape.min_rounds)


def _sample(forward: Forward, inputs: Inputs) -> dict[str, float]:
    return {"seconds": seconds_of(forward, inputs, SEEN_TIMESTEP)}
