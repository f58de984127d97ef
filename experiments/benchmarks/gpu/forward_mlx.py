"""Forward passes on MLX: ours plain, fast and compiled block by block, and mflux, interleaved in one process.

The first process also compares the arms' outputs; see `drift`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import repeat

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
    model = mlx_model.made_transformer(job.shape.config, mx.bfloat16)
    inputs = [mlx_model.made_inputs(job.shape, side, mx.bfloat16) for side in job.shape.forward_sides]
    openers = {name: mlx_model.ours(model, techniques) for name, techniques in OURS.items()}
    openers["mflux"] = mflux(model, job.shape.text_tokens)
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
            arms += [_arm(name, forward, one, timesteps) for one in inputs]
        measure(job.writer, arms, job.deadline, job.shape.min_rounds, seed=job.process)
    if job.process == 0:
        drift.run(job, model, inputs)


def _arm(name: str, forward: Forward, inputs: Inputs, timesteps: Iterator[float]) -> Arm:
    return Arm({"arm": name, "side": inputs.side}, lambda: {"seconds": seconds_of(forward, inputs, next(timesteps))})


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
