"""The cost of the range catalogue at block outputs and at every operation, measured with the lab's own recorder.

A sample is a short generation. The observers are installed once, which is timed separately as `setup_seconds`. The
timed part runs the forwards, each evaluated as in the sampler, reads the last statistics and builds the columns.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

import mlx.core as mx
import mlx.nn as nn

from experiments.benchmarks.gpu import mlx_model
from experiments.benchmarks.gpu.mlx_model import SEEN_TIMESTEP, Forward, Inputs, step_of
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.rounds import Arm, measure, record_error
from precision_lab.lab.observing import observing
from precision_lab.lab.recorder import recorder_of
from precision_lab.probes.ranges import RangeCatalogue

STEPS = 3

BLOCKS: tuple[str, ...] = ("transformer_blocks.*",)
EVERYTHING: tuple[str, ...] = ("transformer_blocks.*.**",)

ARMS: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    ("ours plain", "none", None),
    ("ours plain", "off", ()),
    ("ours plain", "blocks", BLOCKS),
    ("ours plain", "every operation", EVERYTHING),
    ("ours fast", "none", None),
    ("ours fast", "off", ()),
    ("ours fast", "blocks", BLOCKS),
)
"""Model, description, and observed sites: None is an unmodified model, () the recorder without observers."""


def run(job: Job) -> None:
    model = mlx_model.made_transformer(job.shape, mx.bfloat16)
    inputs = mlx_model.made_inputs(job.shape, job.shape.forward_sides[-1], mx.bfloat16)
    ways = {"ours fast": mlx_model.fast, "ours plain": mlx_model.no_techniques}
    with ExitStack() as stack:
        arms = []
        for name, techniques in ways.items():
            try:
                twin = stack.enter_context(mlx_model.rewritten(model, techniques()))
            except Exception as error:
                record_error(job.writer, {"arm": name}, error)
                continue
            forward = step_of(job.shape)(twin)
            arms += [_arm(name, twin, forward, observed, sites, inputs) for arm, observed, sites in ARMS if arm == name]
        measure(job.writer, arms, job.deadline, job.shape.min_rounds)


def _arm(
    name: str, model: nn.Module, forward: Forward, observed: str, sites: Sequence[str] | None, inputs: Inputs
) -> Arm:
    return Arm(
        {"arm": name, "probes": observed, "side": inputs.side},
        lambda: _generation(model, forward, sites, inputs),
    )


def _generation(model: nn.Module, forward: Forward, sites: Sequence[str] | None, inputs: Inputs) -> dict[str, float]:
    """Seconds per forward, and seconds of the setup; `forward` is one of `model`."""
    recorders = [recorder_of(RangeCatalogue(sites=sites))] if sites else []
    mx.synchronize()
    begun = time.perf_counter()
    with ExitStack() as stack:
        if sites is not None:
            stack.enter_context(observing({"transformer": model}, recorders))
        start = time.perf_counter()
        for _ in range(STEPS):
            mx.eval(forward(inputs, SEEN_TIMESTEP))
    rows = [len(next(iter(recorder.columns.values()))) for recorder in recorders]
    mx.synchronize()
    seconds = (time.perf_counter() - start) / STEPS
    return {"seconds": seconds, "setup_seconds": start - begun, "arrays": sum(rows) / STEPS}
