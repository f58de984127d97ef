"""The specification of a run as typed values. Only the command line depends on Hydra."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from precision_lab.errors import InputError, nearest, shown
from precision_lab.lab.compute import Compute
from precision_lab.lab.measures import LatencySpec, PinnedSpec, TeacherSpec
from precision_lab.lab.subject import Case, Source, varied
from precision_lab.lab.values import NAMED, check_prompt, check_seed, is_name, one_of
from precision_lab.probes.base import AnyProbe
from precision_lab.techniques.base import Technique

REFERENCE = "reference"
OTHER_REFERENCE = f"{REFERENCE}+"
"""Begins the name of the reference of a variant with settings of its own."""

EXPECTATIONS = ("any", "finite", "nonfinite")
MOST_PROCESSES = 8
"""The most processes that generate at once, for each CPU core."""


@dataclass(frozen=True)
class ProcessSpec:
    """The switches that MLX reads once per process. By default, and for the reference, all reduced modes are off."""

    tf32: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.tf32, bool):
            raise InputError(f"process.tf32 is {self.tf32!r}, expected true or false")


LOCAL = "local"
"""The engine whose workers are processes of this machine."""

HERE = ProcessSpec()
"""The switches of the process that owns the run."""


@dataclass(frozen=True)
class Variant:
    """One way to compute the model: the dtype of its activations, and techniques in order of application.

    dtype: of all components, or some by name, as the canonical text of `precision_lab.lab.compute.Compute`.
    process: numeric switches. If they differ from the reference's, the variant runs in its own process. settings: those
    of the cases that this variant overrides, among the source's `varied` ones. reference: the name of the reference
    with the same settings, against which every step is compared; set by RunSpec.
    """

    name: str
    dtype: str
    techniques: Mapping[str, Technique] = field(default_factory=dict)
    expect: str = "any"
    process: ProcessSpec = ProcessSpec()
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: str = REFERENCE

    @property
    def compute(self) -> Compute:
        """The dtypes of the components. Raises InputError if `dtype` is none."""
        return Compute.parse(f"variants.{self.name}.dtype", self.dtype)

    @property
    def is_reference(self) -> bool:
        """Whether other generations are compared with this one."""
        return self.name == self.reference or self.name == REFERENCE

    @property
    def needs(self) -> frozenset[str]:
        """The references that this generation is compared with: its own, and that of the run's settings."""
        return frozenset({self.reference, REFERENCE}) - {self.name}

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise InputError(f"Variant name {shown(self.name)}: expected {NAMED}")
        object.__setattr__(self, "dtype", str(self.compute))
        one_of(f"variants.{self.name}.expect", self.expect, EXPECTATIONS)


@dataclass(frozen=True)
class Evidence:
    """What must be recorded for a claim to be judged; the plan refuses a claim that nothing is observed for.

    - claim, metric: its id and the name of the metric, for messages. sites: patterns that must match something
      observed. stream: a residual stream of the subject.
    - columns: those that a probe must add, at `sites`. drift: whether `sites` are those of drift.
    - distribution, picture: whether the result must hold logits, or the subject draw a picture. seeds: how many.
    """

    claim: str
    metric: str
    sites: tuple[str, ...] = ()
    stream: str | None = None
    columns: tuple[str, ...] = ()
    drift: bool = False
    distribution: bool = False
    picture: bool = False
    seeds: int = 1


@dataclass(frozen=True)
class RunSpec:
    """An experiment that is ready to run.

    source: the source of the weights. settings: those of every case, in the subject's own terms.
    reference: the variant that all others are compared with, by default the plain model in fp32.
    engine: LOCAL, or where the workers of a cluster are found. workers: number of slots that generate in parallel; None
    selects it automatically. See `precision_lab.lab.slots`.
    claims: as plain values, kept for whoever judges the run; evidence: what they need.
    """

    experiment: str
    source: Source
    settings: Mapping[str, Any]
    prompts: Sequence[str]
    seeds: Sequence[int]
    variants: Sequence[Variant]
    baseline: str
    probes: Mapping[str, AnyProbe]
    drift_sites: Sequence[str]
    latency: LatencySpec
    out: Path
    teacher: TeacherSpec = field(default_factory=TeacherSpec)
    pinned: PinnedSpec = field(default_factory=PinnedSpec)
    resume: bool = False
    resolved: str = ""
    command: Sequence[str] = ()
    workers: int | None = None
    engine: str = LOCAL
    claims: Sequence[Mapping[str, Any]] = ()
    evidence: Sequence[Evidence] = ()
    reference: Variant = field(default_factory=lambda: Variant(REFERENCE, "float32"))

    def __post_init__(self) -> None:
        if not is_name(self.experiment):
            raise InputError(f"experiment is {shown(self.experiment)}, expected {NAMED}")
        if not self.prompts or not self.seeds:
            raise InputError("prompts and seeds need at least one entry each")
        for prompt in self.prompts:
            check_prompt("prompts", prompt)
        for seed in self.seeds:
            check_seed("seeds", seed)
        if len(set(self.seeds)) != len(self.seeds) or len(set(self.prompts)) != len(self.prompts):
            raise InputError("prompts and seeds must each be distinct")
        if not self.variants:
            raise InputError("The experiment has no variants, expected at least one")
        most = MOST_PROCESSES * (os.cpu_count() or 1)
        if self.workers is not None and not (type(self.workers) is int and 1 <= self.workers <= most):
            raise InputError(
                f"workers is {shown(self.workers)}, expected null or a number of processes from 1 to {most}, "
                f"which is {MOST_PROCESSES} for each core of this machine"
            )
        names = [variant.name for variant in self.variants]
        for name in names:
            if name == REFERENCE or name.startswith(OTHER_REFERENCE):
                raise InputError(f"Variant name {name!r} is taken by the reference")
        one_of("baseline", self.baseline, names)
        self.reference.compute.check("reference.dtype", self.source)
        allowed = varied(self.source)
        for variant in self.variants:
            variant.compute.check(f"variants.{variant.name}.dtype", self.source)
            for key in variant.settings:
                if key not in allowed:
                    raise InputError(
                        f"variants.{variant.name}.settings: {key!s} cannot differ between the variants of a run. "
                        + (nearest(str(key), allowed) if allowed else "The model allows no setting to differ.")
                    )
        object.__setattr__(self, "variants", [replace(v, reference=self._reference(v).name) for v in self.variants])

    @property
    def has_plain_reference(self) -> bool:
        """Whether the reference is the plain model in fp32."""
        return self.reference.dtype == "float32" and not self.reference.techniques

    @property
    def cases(self) -> list[Case]:
        return [Case(i, prompt, seed, self.settings) for i, prompt in enumerate(self.prompts) for seed in self.seeds]

    def case(self, variant: Variant, case: Case) -> Case:
        """A case of the run with the settings of a variant."""
        return replace(case, settings={**case.settings, **variant.settings}) if variant.settings else case

    @property
    def references(self) -> list[Variant]:
        """The reference with the run's settings, and one for each other set of settings that variants have."""
        found: dict[str, Variant] = {}
        for variant in (None, *self.variants):
            reference = self._reference(variant)
            found.setdefault(reference.name, reference)
        return list(found.values())

    @property
    def all_variants(self) -> list[Variant]:
        """The references, which every run generates first, and the experiment's variants."""
        return [*self.references, *self.variants]

    def _reference(self, variant: Variant | None) -> Variant:
        """The reference of a variant, named after the first variant with the same settings."""
        own = self._own(variant)
        if not own:
            return self.reference
        first = next(other for other in self.variants if self._own(other) == own)
        name = f"{OTHER_REFERENCE}{first.name}"
        return replace(self.reference, name=name, settings=own, reference=name)

    def _own(self, variant: Variant | None) -> dict[str, Any]:
        """The settings of a variant that differ from the run's."""
        settings = variant.settings if variant else {}
        return {key: value for key, value in settings.items() if self.settings.get(key) != value}
