"""Guidance as two forwards or one batch of two, with texts of equal length, or with padding and a mask."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import mlx.core as mx

from experiments.benchmarks.gpu import mlx_model
from experiments.benchmarks.gpu.mlx_model import SEEN_TIMESTEP, Forward, Inputs, step_of
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.rounds import Arm, measure, record_error

ONE_BY_ONE = "one by one"


def batch(inputs: Inputs, padding: int) -> Inputs:
    """Both branches in one batch; the second text ends `padding` tokens before the first."""
    tokens = inputs.text.shape[1]
    mask = mx.arange(tokens)[None] < mx.array([[tokens], [tokens - padding]]) if padding else None
    latents, text = (mx.repeat(a, 2, axis=0) for a in (inputs.latents, inputs.text))
    mx.eval(latents, text, mask)
    return inputs._replace(latents=latents, text=text, mask=mask)


def run(job: Job) -> None:
    model = mlx_model.made_transformer(job.shape, mx.bfloat16)
    sides = (job.shape.token_sides[0], *job.shape.forward_sides)
    inputs = [mlx_model.made_inputs(job.shape, side, mx.bfloat16) for side in sides]
    with ExitStack() as stack:
        arms = []
        for name, techniques in {"ours fast": mlx_model.fast, "ours plain": mlx_model.no_techniques}.items():
            try:
                twin = stack.enter_context(mlx_model.rewritten(model, techniques()))
            except Exception as error:
                record_error(job.writer, {"arm": name}, error)
                continue
            forward = step_of(job.shape)(twin)
            arms += [arm for one in inputs for arm in _arms(name, forward, one, job.shape.text_tokens // 2)]
        measure(job.writer, arms, job.deadline, job.shape.min_rounds)


def _arms(name: str, forward: Forward, inputs: Inputs, padding: int) -> list[Arm]:
    ways = {
        ONE_BY_ONE: lambda: [forward(inputs, SEEN_TIMESTEP) for _ in range(2)],
        "batched": partial(forward, batch(inputs, 0), SEEN_TIMESTEP),
        "batched, padded": partial(forward, batch(inputs, padding), SEEN_TIMESTEP),
    }
    return [Arm({"arm": name, "way": way, "side": inputs.side}, partial(_sample, call)) for way, call in ways.items()]


def _sample(call: Callable[[], Any]) -> dict[str, float]:
    return {"seconds": mlx_model.seconds_to_evaluate(call)}
