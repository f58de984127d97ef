"""Forward passes on MLX: ours plain, fast and compiled block by block, and mflux, interleaved in one process.

Where an architecture has set-ups that a generation computes once for a text, their time is measured too.
The first process also compares the arms' outputs; see `drift`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import repeat
from typing import Any

import mlx.core as mx

from experiments.benchmarks.gpu import drift, mlx_model
from experiments.benchmarks.gpu.mflux_model import mflux
from experiments.benchmarks.gpu.mlx_model import SEEN_TIMESTEP, Forward, Inputs, Opener, seconds_of
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.rounds import Arm, measure, record_error

OURS = {
    "ours fast": mlx_model.fast,  # first, because the others share the weights that it packs
    "ours plain": mlx_model.no_techniques,
    "ours compiled blocks": mlx_model.compiled_blocks,
}
COLD = "ours fast, cold"
"""Uses a new timestep in every forward. The other arms repeat one, as every generation after the first does."""


def run(job: Job) -> None:
    model = mlx_model.made_transformer(job.shape, mx.bfloat16)
    inputs = [mlx_model.made_inputs(job.shape, side, mx.bfloat16) for side in job.shape.forward_sides]
    openers = {
        f"{name}{suffix}": mlx_model.ours(model, techniques, of)
        for name, techniques in OURS.items()
        for suffix, of in job.shape.module("ours").PASSES.items()
    }
    openers["mflux"] = mflux(job.shape, model)
    _memory(job, openers, inputs)
    openers = {COLD: openers["ours fast"], **openers}
    with ExitStack() as stack:
        arms = []
        for name, opener in openers.items():
            try:
                forward = stack.enter_context(opener())
            except Exception as error:
                record_error(job.writer, {"arm": name}, error)
                continue
            timesteps = mlx_model.unseen_timesteps() if name == COLD else repeat(SEEN_TIMESTEP)
            arms += [_arm({"arm": name, "side": one.side}, forward, one, timesteps) for one in inputs]
        for what, of in job.shape.module("ours").SETUPS.items():
            for name in ("ours fast", "ours plain"):
                try:
                    forward = stack.enter_context(mlx_model.ours(model, OURS[name], of)())
                except Exception as error:
                    record_error(job.writer, {"arm": name, "what": what}, error)
                    continue
                tags = {"arm": name, "what": what, "text_tokens": job.shape.text_tokens}
                arms.append(_arm(tags, forward, inputs[0], repeat(SEEN_TIMESTEP)))
        measure(job.writer, arms, job.deadline, job.shape.min_rounds, seed=job.process)
    if job.process == 0:
        drift.run(job, model, inputs)


def _arm(tags: Mapping[str, Any], forward: Forward, inputs: Inputs, timesteps: Iterator[float]) -> Arm:
    return Arm(tags, lambda: {"seconds": seconds_of(forward, inputs, next(timesteps))})


def _memory(job: Job, openers: Mapping[str, Opener], inputs: list[Inputs]) -> None:
    """Records the peak memory of each arm while no other is open; this also compiles its kernels."""
    weights = mx.get_active_memory() / 1e9
    for name, opener in openers.items():
        for one in inputs:
            tags = {"arm": name, "side": one.side}
            try:
                with opener() as forward:
                    peak = mlx_model.peak_gigabytes(forward, one)
            except Exception as error:
                record_error(job.writer, {**tags, "what": "memory"}, error)
                continue
            job.writer.add("memory", **tags, peak_gb=peak, weights_gb=weights)
        job.writer.save()
