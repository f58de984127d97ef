"""Pinned cases: generations of the plain model in fp32 that a baseline keeps, sub-operation by sub-operation.

Ranges do not see a small mistake in the model, and a reference made in the same run shares it. So a few cases (a
prompt, a seed and a size each) are fixed, and every array at `pinned.sites` leaves a sketch of itself
(`precision_lab.numerics.sketch`): with the sketches of an earlier version, and nothing else, the first operation that
computes something different has a name.

The table `sketches` has a row for each array:

- variant: `reference`, the plain model in fp32; or `equivalent`, the same with its sums reordered, which differs by
  rounding alone: the deviation of the one from the other is the noise floor. Only with `noise_floor`;
- case, prompt, seed, height, width: the case, by name, and what it is; sizes in pixels;
- branch, step, sigma, component, site, port, stream, block: where and when, null where it means nothing; `order`, the
  last column, counts the arrays of one generation in order of execution;
- dtype, shape, numel: the array itself, shape as 1x64x256;
- num_nonfinite; rms and sketch_0 to sketch_7 in fp32, NaN where an element is not finite.

(variant, case, branch, step, component, site, port) names one row; rows are sorted by variant, case and order. Guidance
and the negative prompt are the run's, steps are `pinned.steps`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site, select
from precision_lab.lab import tables
from precision_lab.lab.bench import Advance, Bench
from precision_lab.lab.generation import generate
from precision_lab.lab.recorder import ProbeRecorder, observing
from precision_lab.lab.spec import REFERENCE, Case, PinnedCase, RunSpec, SamplerSpec, Variant
from precision_lab.model.qwen_image.pipeline import Pipeline
from precision_lab.probes.sketches import Sketches
from precision_lab.techniques.reordered_sums import ReorderedSums

TABLE = "sketches"
EQUIVALENT = "equivalent"
_REORDERED = ReorderedSums()


def check(spec: RunSpec, pipeline: Pipeline, sites: Sequence[Site]) -> None:
    """Raises InputError if a pinned case of `spec` cannot be run on this model."""
    if not spec.pinned.cases:
        return
    select(spec.pinned.sites, sites)
    if spec.pinned.noise_floor:
        select(_REORDERED.sites, sites)
    pipeline.tokenizer([case.prompt for case in spec.pinned.cases.values()])
    for name, case in spec.pinned.cases.items():
        try:
            pipeline.grid(case.height, case.width)
        except InputError as error:
            raise InputError(f"pinned.cases.{name}: {error}") from error


def steps(spec: RunSpec) -> int:
    """The denoising steps of all pinned cases together."""
    return len(spec.pinned.cases) * len(_variants(spec)) * spec.pinned.steps


def measure(bench: Bench, advance: Advance) -> None:
    """Leaves a part of the table for each case and variant that has none yet."""
    for variant in _variants(bench.spec):
        for name, case in bench.spec.pinned.cases.items():
            part = f"{variant.name}__{name}"
            if tables.part_path(bench.spec.out, TABLE, part).exists():
                advance(bench.spec.pinned.steps, f"pinned {name}")
            else:
                tables.write_part(bench.spec.out, TABLE, part, _sketches(bench, variant, name, case, advance))


def described(spec: RunSpec) -> dict[str, Any]:
    """What the manifest says of the pinned cases: settings, and a fingerprint that two comparable runs share.

    The fingerprint covers all that decides the sketches besides the weights and the code; not `noise_floor`, which
    only adds to them.
    """
    pinned, sampler = spec.pinned, spec.sampler
    settings = {
        "steps": pinned.steps,
        "guidance_scale": sampler.guidance_scale,
        "negative_prompt": sampler.negative_prompt if sampler.guided else None,
        "cases": {name: asdict(case) for name, case in pinned.cases.items()},
        "sites": list(pinned.sites),
    }
    canonical = json.dumps(settings, sort_keys=True).encode()
    return {**settings, "noise_floor": pinned.noise_floor, "fingerprint": hashlib.sha256(canonical).hexdigest()}


def _variants(spec: RunSpec) -> list[Variant]:
    equivalent = Variant(EQUIVALENT, "float32", {"reordered_sums": _REORDERED})
    return [Variant(REFERENCE, "float32"), *([equivalent] if spec.pinned.noise_floor else [])]


def _sketches(bench: Bench, variant: Variant, name: str, case: PinnedCase, advance: Advance) -> list[dict[str, Any]]:
    """The rows of one generation."""
    spec = bench.spec
    sampler: SamplerSpec = replace(spec.sampler, steps=spec.pinned.steps, height=case.height, width=case.width)
    recorder = ProbeRecorder(Sketches(spec.pinned.sites))
    with bench.variant(variant) as (pipeline, _), observing(pipeline.components, [recorder]):
        grid, generation = pipeline.grid(case.height, case.width), Case(0, case.prompt, case.seed)
        generate(pipeline, sampler, grid, generation, lambda *_: advance(1, f"pinned {name}"))
    labels = {"variant": variant.name, "case": name, **asdict(case)}
    return [{**labels, **row} for row in recorder.rows]
