"""The plan of a run: everything that can be known, checked and refused before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import mlx.nn as nn
from mlx.utils import tree_flatten

from precision_lab.device import memory
from precision_lab.device.environment import backend
from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, Site, select, walk
from precision_lab.lab import evidence, latency, pinned, probe_columns, slots, teacher
from precision_lab.lab.bench import Bench
from precision_lab.lab.failure import Failure
from precision_lab.lab.observing import CALL
from precision_lab.lab.spec import HERE, LOCAL, OTHER_REFERENCE, REFERENCE, ProcessSpec, RunSpec, Variant
from precision_lab.lab.subject import least_memory, remarks
from precision_lab.lab.values import one_of
from precision_lab.record.manifest import Coverage
from precision_lab.techniques.base import chosen
from precision_lab.techniques.parts.weight_storage import WeightStorage, model_storage, weight_storage

_NAMED = 3
"""The number of variants that a message names beside the first."""


@dataclass(frozen=True)
class Plan:
    """A run that can be carried out.

    - steps: number of steps of all generations together, those of pinned cases apart.
    - coverage: by variant, the modules that its techniques rewrite. linears, weights: by variant and component, the
      storage of its linears, and of all its parameters. choices: by variant and technique, what it measured and chose.
    - remarks: of the source, on the settings of the cases.
    - errors: by variant, what its techniques raised when they were applied; such a variant is not run.
    - workers: slots on this machine. weight_bytes: of one copy of the weights. memory: bytes that a task needs at
      least. margin: of latency, relative.
    """

    spec: RunSpec
    bench: Bench
    steps: int
    workers: int
    weight_bytes: int
    memory: int
    margin: float
    coverage: Mapping[str, Mapping[str, Coverage]] = field(default_factory=dict)
    linears: Mapping[str, Mapping[str, WeightStorage]] = field(default_factory=dict)
    weights: Mapping[str, Mapping[str, WeightStorage]] = field(default_factory=dict)
    choices: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    errors: Mapping[str, Failure] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def processes(self) -> set[ProcessSpec]:
        """The switches of other processes that variants need."""
        return {variant.process for variant in self.spec.variants} - {HERE}

    @property
    def notes(self) -> list[str]:
        """Remarks for the user that are no errors."""
        names = ", ".join(variant.name for variant in self.spec.variants if variant.process != HERE)
        notes = list(self.remarks)
        if names and backend() == "cpu":
            notes.append(f"{names}: TF32 changes nothing on a CPU, expect the numbers of the same variant without it")
        if names and self.spec.teacher.mode != "off":
            notes.append(f"{names}: no local error is measured, because the reference is computed in another process")
        return notes


def plan(spec: RunSpec) -> Plan:
    """Checks `spec` against its subject and applies every variant's techniques once. Nothing is evaluated or written.

    Raises InputError for a spec that cannot be run. An exception of another kind that a technique raises is noted.
    """
    bench = Bench(spec)
    steps = sum(_steps(bench, variant) for variant in spec.all_variants)
    components = bench.components("float32")
    weight_bytes = _nbytes(components)
    workers = slots.workers(spec, steps, weight_bytes) if spec.engine == LOCAL else 0
    needed = _needed_memory(spec, workers, weight_bytes)
    _check_sites(spec, bench, components)
    probe_columns.check(spec.probes)
    coverage: dict[str, Mapping[str, Coverage]] = {}
    linears: dict[str, Mapping[str, WeightStorage]] = {}
    weights: dict[str, Mapping[str, WeightStorage]] = {}
    choices: dict[str, Mapping[str, Mapping[str, int]]] = {}
    errors: dict[str, Failure] = {}
    unfit: dict[str, InputError] = {}
    for variant in spec.all_variants:
        try:
            with bench.variant(variant) as (_, held, coverage[variant.name]):
                linears[variant.name], weights[variant.name] = weight_storage(held), model_storage(held)
                choices[variant.name] = chosen(variant.techniques)
        except InputError as error:
            unfit[variant.name] = error
        except (Exception, SystemExit) as error:
            if variant.is_reference:  # nothing could be compared with it
                raise
            errors[variant.name] = Failure.of(error, bench.layout)
    _check_fit(spec, unfit)
    return Plan(
        spec=spec,
        bench=bench,
        steps=steps,
        workers=workers,
        weight_bytes=weight_bytes,
        memory=needed,
        margin=spec.latency.margin or latency.DEFAULT_MARGIN[backend()],
        coverage=coverage,
        linears=linears,
        weights=weights,
        choices=choices,
        errors=errors,
        remarks=_remarks(spec),
    )


def _check_fit(spec: RunSpec, unfit: Mapping[str, InputError]) -> None:
    """Raises the first error in `unfit`, by variant, with the names of the other variants that do not fit the model."""
    if not unfit:
        return
    (name, error), *_ = unfit.items()
    message = f"{_key(name)}: {error}"
    others = [variant.name for variant in spec.variants if variant.name in unfit and variant.name != name]
    if others and name != REFERENCE:
        named = others[:_NAMED] + ["..."] * (len(others) > _NAMED)
        message += (
            f"\n{len(others) + 1} variants do not fit the model, also {', '.join(named)}; only=[NAME] selects others"
        )
    raise InputError(message) from error


def _key(variant: str) -> str:
    """Where a variant is configured."""
    return variant if variant == REFERENCE else f"variants.{variant.removeprefix(OTHER_REFERENCE)}"


def _needed_memory(spec: RunSpec, workers: int, weight_bytes: int) -> int:
    """Bytes that the largest case and the weights of one slot need, both at least.

    Raises InputError if a case, or the copies of the weights in all processes, cannot fit in this machine.
    """
    there_is, copies = memory.physical(), len({variant.process for variant in spec.all_variants})
    largest = 0
    for variant in spec.all_variants:
        for case in spec.cases:
            needed = least_memory(spec.source, spec.case(variant, case))
            largest = max(largest, needed)
            if needed > there_is and spec.engine == LOCAL:
                raise InputError(
                    f"Prompt {case.prompt_id} with {dict(spec.case(variant, case).settings)} needs at least "
                    f"{needed / 1e9:.1f} GB, but this machine has {there_is / 1e9:.1f} GB of memory"
                )
    if spec.workers is not None and workers * weight_bytes > there_is:
        raise InputError(
            f"workers is {workers}: as many copies of the weights need {workers * weight_bytes / 1e9:.1f} GB, "
            f"but this machine has {there_is / 1e9:.1f} GB of memory"
        )
    is_local = spec.engine == LOCAL  # the workers of a cluster say themselves how much they have
    if is_local and copies > 1 and copies * weight_bytes > (of_device := memory.of_the_device()):
        raise InputError(
            f"{copies} processes with different switches hold a copy of the weights each, {weight_bytes / 1e9:.1f} GB, "
            f"but the device has {of_device / 1e9:.1f} GB of memory: compare them in runs of their own"
        )
    return max(largest, copies * weight_bytes)


def _steps(bench: Bench, variant: Variant) -> int:
    """The number of steps of all cases with the settings of a variant."""
    try:
        return sum(bench.steps(bench.spec.case(variant, case)) for case in bench.spec.cases)
    except InputError as error:
        if not variant.settings:
            raise
        raise InputError(f"{_key(variant.name)}.settings: {error}") from error


def _remarks(spec: RunSpec) -> list[str]:
    """What the source remarks on the cases of the run, and on those of variants with settings of their own."""
    said = dict.fromkeys(remark for case in spec.cases for remark in remarks(spec.source, case))
    for variant in spec.variants:
        own = (remark for case in spec.cases for remark in remarks(spec.source, spec.case(variant, case)))
        said |= {f"{variant.name}: {remark}": None for remark in own if remark not in said}
    return list(said)


def _check_sites(spec: RunSpec, bench: Bench, components: Components) -> None:
    sites: list[Site] = walk(components)
    for name, probe in spec.probes.items():
        for port in probe.ports:
            one_of(f"probe.{name}.ports", port, ("in", "out", CALL))
        if CALL in probe.ports and len(probe.ports) > 1:
            raise InputError(f"probe.{name}.ports is {list(probe.ports)}, expected [call] alone, or in and out")
    for patterns in (spec.drift_sites, spec.teacher.sites, *(probe.sites for probe in spec.probes.values())):
        select(patterns, sites)
    if spec.teacher.mode != "off":
        teacher.check(bench.subject("float32"), components, spec.teacher.sites, spec.cases[0])
    pinned.check(spec, sites)
    evidence.check(spec, bench.layout, sites)


def _nbytes(components: Mapping[str, nn.Module]) -> int:
    """Total size of the parameters in bytes."""
    return sum(array.nbytes for module in components.values() for _, array in tree_flatten(module.parameters()))
