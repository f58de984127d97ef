"""The differences between the arms' outputs, free-running through all blocks, against the noise floor of bfloat16.

The floor is the distance between runs of the plain model that should be equal: with compiled blocks, or with another
order of summation. An arm's drift is significant only above it. All arms are also compared with the plain model in fp32
on the same bfloat16 weights: an arm may differ from the plain model if it is no farther from the fp32 result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from experiments.benchmarks.gpu import mlx_model
from experiments.benchmarks.gpu.mflux_model import mflux
from experiments.benchmarks.gpu.mlx_model import SEEN_TIMESTEP, Inputs, Opener, step_of
from experiments.benchmarks.gpu.part import Job
from experiments.benchmarks.gpu.rounds import record_error
from precision_lab.instrument.arrays import to_numpy
from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.numerics.metrics import compare
from precision_lab.techniques.reordered_sums import ReorderedSums

PLAIN = "ours plain"
FLOAT32 = "ours plain, fp32"
ROLES = {PLAIN: "baseline", "ours compiled blocks": "noise floor", "ours reordered sums": "noise floor"}


def run(job: Job, model: nn.Module, inputs: list[Inputs]) -> None:
    """Rows of kind "drift" for each arm and side, against the plain model in bfloat16 and in fp32."""
    ways = {
        PLAIN: mlx_model.no_techniques,
        "ours compiled blocks": mlx_model.compiled_blocks,
        "ours reordered sums": lambda: _reordered_sums(job.shape.module("ours").REORDERED),
        "ours fast": mlx_model.fast,
    }
    openers = {name: mlx_model.ours(model, techniques, step_of(job.shape)) for name, techniques in ways.items()}
    openers["mflux"] = mflux(job.shape, model)
    openers[FLOAT32] = mlx_model.ours(model, lambda: {"one_by_one": OneByOne()}, step_of(job.shape))
    for one in inputs:
        outputs = {}
        for name, opener in openers.items():
            dtype = mx.float32 if name == FLOAT32 else mx.bfloat16
            given = one._replace(latents=one.latents.astype(dtype), text=one.text.astype(dtype))
            try:
                outputs[name] = _output(opener, given)
            except Exception as error:
                record_error(job.writer, {"arm": name, "side": one.side, "what": "drift"}, error)
        for reference in (name for name in (PLAIN, FLOAT32) if name in outputs):
            for name in (name for name in outputs if name not in (reference, FLOAT32)):
                metrics = compare(outputs[name], outputs[reference]).to_json()
                role = ROLES.get(name, "variant")
                job.writer.add("drift", arm=name, role=role, side=one.side, against=reference, **metrics)
        job.writer.save()


def _output(opener: Opener, inputs: Inputs) -> np.ndarray:
    with opener() as forward:
        output = forward(inputs, SEEN_TIMESTEP).astype(mx.float32)
        mx.eval(output)
        result = np.array(to_numpy(output))
    mx.clear_cache()
    return result


def _reordered_sums(sites: Sequence[str]) -> mlx_model.Techniques:
    return {"reordered_sums": ReorderedSums(sites=sites), "one_by_one": OneByOne()}


class _Evaluated(Wrapper):
    def __call__(self, *args: Any) -> Any:
        out = self.inner(*args)
        mx.eval(*out)
        return out


@dataclass(frozen=True)
class OneByOne:
    """Evaluates each block before it builds the next, since fp32 copies of many blocks' weights would not fit."""

    sites: Sequence[str] = ("transformer_blocks.*",)
    preserves_function: bool = True
    composes: bool = True

    def rewrite(self, site: Site) -> nn.Module:
        return _Evaluated(site.module)
