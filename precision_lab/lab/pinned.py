"""Pinned cases: fp32 generations of the plain model whose arrays a baseline records as sketches.

Ranges do not reveal a small mistake in the model, and a reference generated in the same run shares it. A few cases
(each a prompt, a seed and a size) are therefore fixed, and every array at `pinned.sites` is recorded as a sketch
(`precision_lab.numerics.sketch`). The sketches of an earlier version are enough to identify the first operation whose
result has changed.

The table `sketches` has one row for each array:

- variant: `reference`, the plain model in fp32; or `equivalent`, the same with its sums reordered, which differs only
  by rounding. The deviation between the two is the noise floor. `equivalent` exists only with `noise_floor`;
- case, prompt, seed: the name of the case and its input; then its own settings, such as height and width;
- branch, step, sigma, component, site, port, stream, block: the position, null where not applicable; `order`, the last
  column, numbers the arrays of one generation in order of execution;
- dtype, shape, numel: the properties of the array, with shape written as 1x64x256;
- num_nonfinite; rms and sketch_0 to sketch_7 in fp32, NaN where an element is not finite.

(variant, case, branch, step, component, site, port) identifies a row. Rows are sorted by variant, case and order.
Settings that a case does not give are those of the run, with `pinned.steps` steps. A case may scale the inputs of norms
down (`faint`), because in an ordinary generation another eps changes only the last digits.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from precision_lab.errors import InputError
from precision_lab.instrument.blame import Place, blame
from precision_lab.instrument.sites import Site, select
from precision_lab.lab.bench import Advance, Bench
from precision_lab.lab.measures import PinnedCase, PinnedSpec
from precision_lab.lab.observing import observing
from precision_lab.lab.recorder import ProbeRecorder
from precision_lab.lab.spec import REFERENCE, RunSpec, Variant
from precision_lab.lab.subject import Case, generation, picture_of
from precision_lab.probes.sketches import Sketches
from precision_lab.record import tables
from precision_lab.record.files import File
from precision_lab.record.manifest import PinnedCases
from precision_lab.techniques.faint_inputs import FaintInputs
from precision_lab.techniques.reordered_sums import ReorderedSums

TABLE = "sketches"
EQUIVALENT = "equivalent"
_KEY = ("branch", "step", "component", "site", "port")


def check(spec: RunSpec, sites: Sequence[Site]) -> None:
    """Raises InputError if a pinned case of `spec` cannot be run on this model."""
    if not spec.pinned.cases:
        return
    select(spec.pinned.sites, sites)
    for technique in _equivalent(spec.pinned).values():
        select(technique.sites, sites)
    check_settings(spec)
    for name, case in spec.pinned.cases.items():
        if case.faint:
            try:
                select(case.faint, sites)
            except InputError as error:
                raise InputError(f"pinned.cases.{name}: {error}") from error


def check_settings(spec: RunSpec) -> None:
    """Raises InputError if a pinned case of `spec` has settings that its source does not accept."""
    for name, case in spec.pinned.cases.items():
        try:
            spec.source.steps(_case(spec, case))
        except InputError as error:
            raise InputError(f"pinned.cases.{name}: {error} (pinned.steps is {spec.pinned.steps})") from error


@dataclass(frozen=True)
class Generation:
    """One pinned case to generate with one variant."""

    variant: Variant
    name: str
    case: Case
    faint: Sequence[str]

    @property
    def part(self) -> str:
        """The name of its part of the table."""
        return f"{self.variant.name}__{self.name}"


def generations(spec: RunSpec) -> list[Generation]:
    """All generations of pinned cases."""
    cases = spec.pinned.recorded.items()
    return [Generation(v, name, _case(spec, case), case.faint) for v in _variants(spec.pinned) for name, case in cases]


def make(bench: Bench, pinned: Generation, advance: Advance) -> list[File]:
    """Runs one generation; returns its part of the table."""
    return [tables.part_of(TABLE, pinned.part, _sketches(bench, pinned, advance))]


def described(spec: RunSpec) -> PinnedCases | None:
    """The manifest's entry on the pinned cases; None without pinned cases.

    Comparable runs have equal fingerprints. The fingerprint covers everything that determines the sketches except the
    weights and the code. It excludes `noise_floor`, which only adds sketches.
    """
    pinned = spec.pinned
    if not pinned.recorded:
        return None
    settings: dict[str, Any] = {
        "case": _shared(spec),
        "cases": {name: _described(case) for name, case in pinned.recorded.items()},
        "sites": list(pinned.sites),
    }
    canonical = json.dumps(settings, sort_keys=True).encode()
    return PinnedCases(**settings, noise_floor=pinned.noise_floor, fingerprint=hashlib.sha256(canonical).hexdigest())


def _shared(spec: RunSpec) -> dict[str, Any]:
    """The settings that the pinned cases share, without those that every case overrides."""
    cases = spec.pinned.recorded.values()
    settings = {**spec.settings, "steps": spec.pinned.steps}
    own = {key: value for key, value in settings.items() if any(key not in case.settings for case in cases)}
    return {key: value for key, value in own.items() if value is not None}  # as if it were not given


def _labels(case: PinnedCase) -> dict[str, Any]:
    """The columns that describe a case."""
    return {"prompt": case.prompt, "seed": case.seed, **case.settings}


def _described(case: PinnedCase) -> dict[str, Any]:
    return _labels(case) | ({"faint": list(case.faint)} if case.faint else {})


def _case(spec: RunSpec, case: PinnedCase) -> Case:
    return Case(0, case.prompt, case.seed, {**spec.settings, "steps": spec.pinned.steps, **case.settings})


def _equivalent(pinned: PinnedSpec) -> Mapping[str, ReorderedSums]:
    """The technique of the variant `equivalent`; empty without `noise_floor`."""
    return {"reordered_sums": ReorderedSums(sites=pinned.reordered)} if pinned.noise_floor else {}


def _variants(pinned: PinnedSpec) -> list[Variant]:
    techniques = _equivalent(pinned)
    equivalent = [Variant(EQUIVALENT, "float32", techniques)] if techniques else []
    return [Variant(REFERENCE, "float32"), *equivalent]


def _sketches(bench: Bench, pinned: Generation, advance: Advance) -> list[dict[str, Any]]:
    """The rows of one generation."""
    spec, variant = bench.spec, pinned.variant
    if pinned.faint:
        variant = replace(variant, techniques={**variant.techniques, "faint_inputs": FaintInputs(pinned.faint)})
    recorder = ProbeRecorder(Sketches(spec.pinned.sites))
    with bench.variant(variant) as (subject, components, _), observing(components, [recorder]):
        state: Any = None
        for _, step in generation(subject, pinned.case, bench.steps(pinned.case)):
            advance(1, f"pinned {pinned.name}")
            state = step.state
        picture_of(subject, state)
    keys = [(*(row[field] for field in _KEY),) for row in recorder.rows]
    twice = next((key for key, count in Counter(keys).items() if count > 1), None)
    if twice is not None:
        branch, step, component, site, _ = twice
        error = InputError(
            f"pinned.sites: {component}:{site} is called twice in one step, so its two arrays have one address. "
            "Name modules that are called once"
        )
        blame(error, Place(component, site, step, branch))
        raise error
    labels = {"variant": variant.name, "case": pinned.name, **_labels(spec.pinned.cases[pinned.name])}
    return [{**labels, **row} for row in recorder.rows]
