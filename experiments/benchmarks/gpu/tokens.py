"""The forward pass against the number of tokens, at full depth."""

from __future__ import annotations

from contextlib import ExitStack

import mlx.core as mx

from experiments.benchmarks.gpu import mlx_model
from experiments.benchmarks.gpu.mlx_model import SEEN_TIMESTEP, Forward, Inputs, seconds_of, step_of
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.rounds import Arm, measure, record_error


def run(job: Job) -> None:
    model = mlx_model.made_transformer(job.shape, mx.bfloat16)
    inputs = [mlx_model.made_inputs(job.shape, side, mx.bfloat16) for side in job.shape.token_sides]
    with ExitStack() as stack:
        arms = []
        for name, techniques in {"ours fast": mlx_model.fast, "ours plain": mlx_model.no_techniques}.items():
            try:
                forward = stack.enter_context(mlx_model.ours(model, techniques, step_of(job.shape))())
            except Exception as error:
                record_error(job.writer, {"arm": name}, error)
                continue
            arms += [_arm(name, forward, one, job) for one in inputs]
        measure(job.writer, arms, job.deadline, job.shape.min_rounds)


def _arm(name: str, forward: Forward, inputs: Inputs, job: Job) -> Arm:
    tags = {"arm": name, "side": inputs.side, "tokens": job.shape.tokens(inputs.side) + job.shape.text_tokens}
    return Arm(tags, lambda: {"seconds": seconds_of(forward, inputs, SEEN_TIMESTEP)})
