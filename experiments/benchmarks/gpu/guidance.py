"""Guidance as two forwards or one batch of two, with texts of equal length, or with padding and a mask."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from experiments.benchmarks.gpu import mlx_model
from experiments.benchmarks.gpu.mlx_model import SEEN_TIMESTEP, Inputs
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.rounds import Arm, measure, record_error
from precision_lab.model.qwen_image.transformer import Transformer

ONE_BY_ONE = "one by one"


class Batch(NamedTuple):
    """Both branches in one batch: arrays of `Inputs` repeated, and the mask of valid text tokens, (2, T), or None."""

    latents: mx.array
    text: mx.array
    mask: mx.array | None

    @classmethod
    def of(cls, inputs: Inputs, padding: int) -> Batch:
        """The second text ends `padding` tokens before the first."""
        tokens = inputs.text.shape[1]
        mask = mx.arange(tokens)[None] < mx.array([[tokens], [tokens - padding]]) if padding else None
        batch = cls(mx.repeat(inputs.latents, 2, axis=0), mx.repeat(inputs.text, 2, axis=0), mask)
        mx.eval(batch)
        return batch


def run(job: Job) -> None:
    model = mlx_model.made_transformer(job.shape.config, mx.bfloat16)
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
            arms += [arm for one in inputs for arm in _arms(name, twin, one, job.shape.text_tokens // 2)]
        measure(job.writer, arms, job.deadline, job.shape.min_rounds)


def _arms(name: str, model: Transformer, inputs: Inputs, padding: int) -> list[Arm]:
    ways = {
        ONE_BY_ONE: partial(_one_by_one, model, inputs),
        "batched": partial(_batched, model, inputs, Batch.of(inputs, 0)),
        "batched, padded": partial(_batched, model, inputs, Batch.of(inputs, padding)),
    }
    return [Arm({"arm": name, "way": way, "side": inputs.side}, partial(_sample, call)) for way, call in ways.items()]


def _sample(call: Callable[[], list[mx.array]]) -> dict[str, float]:
    return {"seconds": mlx_model.seconds_to_evaluate(call)}


def _one_by_one(model: Transformer, inputs: Inputs) -> list[mx.array]:
    timestep = mx.array([SEEN_TIMESTEP])
    return [model(inputs.latents, timestep, inputs.text, inputs.grid) for _ in range(2)]


def _batched(model: Transformer, inputs: Inputs, batch: Batch) -> list[mx.array]:
    timestep = mx.array([SEEN_TIMESTEP, SEEN_TIMESTEP])
    return [model(batch.latents, timestep, batch.text, inputs.grid, batch.mask)]
