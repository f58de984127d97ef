"""`fast` with weights stored in fewer bits, one format at a time beside `fast` in bfloat16, in the same rounds.

Every linear of the blocks is packed. Both branches of a guided step are measured as two forwards and as one batch, in
which one decoding of a weight serves both. `packed` multiplies packed weights at all sizes, `decoded` decodes them at
all sizes, and `measured` chooses as a run does.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from experiments.benchmarks.gpu import mlx_model
from experiments.benchmarks.gpu.guidance import batch
from experiments.benchmarks.gpu.mlx_model import SEEN_TIMESTEP, Forward, Inputs, Opener, Techniques, step_of
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.rounds import Arm, measure, record_error
from experiments.benchmarks.gpu.shapes import Shape
from precision_lab.instrument.sites import select, walk
from precision_lab.numerics.packing import Quantization
from precision_lab.techniques.fast import Fast
from precision_lab.techniques.fast.routes import NEVER
from precision_lab.techniques.quantized_weights import QuantizedWeights

BFLOAT16 = "bfloat16"
FORMATS: Mapping[str, Mapping[str, Any]] = {
    "affine4": {"bits": 4},
    "affine8": {"bits": 8},
    "mxfp8": {"mode": "mxfp8"},
    "mxfp4": {"mode": "mxfp4"},
    "nvfp4": {"mode": "nvfp4"},
}
ROUTES = {"measured": None, "decoded": 0, "packed": NEVER}
"""`decode_from` of `fast`, by the name of the route."""
FORWARD, BATCHED = "forward", "both branches in a batch"


def run(job: Job) -> None:
    model = mlx_model.made_transformer(job.shape, mx.bfloat16)
    inputs = [mlx_model.made_inputs(job.shape, side, mx.bfloat16) for side in job.shape.forward_sides]
    start, seconds = perf_counter(), job.deadline - perf_counter()
    # the choice of a run in all formats, then the routes that it chooses from
    passes = [(name, routes) for routes in (("measured",), ("decoded", "packed")) for name in FORMATS]
    for number, (name, routes) in enumerate(passes, 1):
        openers = {
            (stored, route): mlx_model.ours(model, techniques, step_of(job.shape))
            for stored, route, techniques in _ways(name, routes, job.shape)
        }
        if "measured" in routes:
            chosen = openers if number == 1 else {(name, "measured"): openers[name, "measured"]}
            _memory(job, chosen, inputs, {name: coded_gigabytes(model, job.shape, name)})
        with ExitStack() as stack:
            arms = []
            for (stored, route), opener in openers.items():
                try:
                    forward = stack.enter_context(opener())
                except Exception as error:
                    record_error(job.writer, {"format": stored, "route": route}, error)
                    continue
                tags = {"format": stored, "route": route, "beside": f"{name}, {' and '.join(routes)}"}
                arms += [arm for one in inputs for arm in _arms(tags, forward, one)]
            until = start + seconds * number / len(passes)
            measure(job.writer, arms, until, job.shape.min_rounds, seed=number)
        gc.collect()
        mx.clear_cache()


def _ways(name: str, routes: Sequence[str], shape: Shape) -> Iterator[tuple[str, str, Any]]:
    """The stored format, the route and the techniques of every arm; that in bfloat16 is first, because it packs."""
    yield BFLOAT16, "dense", mlx_model.fast
    for route in routes:
        yield name, route, partial(_techniques, name, shape, ROUTES[route])


def _techniques(name: str, shape: Shape, decode_from: int | None) -> Techniques:
    rules = [{"sites": list(shape.module("ours").LINEARS), **FORMATS[name]}]
    return {name: QuantizedWeights(rules), "fast": Fast(decode_from)}


def _arms(tags: Mapping[str, Any], forward: Forward, inputs: Inputs) -> list[Arm]:
    ways = {FORWARD: inputs, BATCHED: batch(inputs, 0)}
    return [
        Arm({**tags, "way": way, "side": inputs.side}, partial(_sample, forward, given)) for way, given in ways.items()
    ]


def _sample(forward: Forward, inputs: Inputs) -> dict[str, float]:
    return {"seconds": mlx_model.seconds_of(forward, inputs, SEEN_TIMESTEP)}


def _memory(
    job: Job, openers: Mapping[tuple[str, str], Opener], inputs: list[Inputs], coded: Mapping[str, float]
) -> None:
    """The memory of each format beyond the weights in bfloat16, which stay in memory, and the seconds of packing.

    coded: the gigabytes that a format needs for its codes and scales.
    """
    for (stored, _), opener in openers.items():
        before = mx.get_active_memory()
        for one in inputs:
            tags = {"format": stored, "side": one.side}
            try:
                start = perf_counter()
                with opener() as forward:
                    # weights that no opener reads are lazy until a forward
                    packing = [perf_counter() - start, mlx_model.seconds_of(forward, one, SEEN_TIMESTEP)]
                    peak = mlx_model.peak_gigabytes(forward, one) - before / 1e9
                    held = mx.get_active_memory() - before
                    packing.append(-mlx_model.seconds_of(forward, one, SEEN_TIMESTEP))
            except Exception as error:
                record_error(job.writer, {**tags, "what": "memory"}, error)
                continue
            measured = {"beyond_gb": peak, "packed_gb": held / 1e9, "packing_s": sum(packing)}
            job.writer.add("memory", **tags, **measured, coded_gb=coded.get(stored, 0.0))
        job.writer.save()


def coded_gigabytes(model: nn.Module, shape: Shape, name: str) -> float:
    """What codes and scales of the blocks' weights take in a format, in GB (1e9 bytes). Nothing is computed."""
    arguments = Quantization.checked(name, **{"mode": "affine", **FORMATS[name]}).arguments
    sites = select(shape.module("ours").LINEARS, walk({"transformer": model}))
    return sum(array.nbytes for site in sites for array in mx.quantize(site.module.weight, **arguments)) / 1e9
