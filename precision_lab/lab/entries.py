"""The manifest of a run from its plan, and what it says of variants and workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from types import MappingProxyType

from precision_lab.device.environment import numeric_switches
from precision_lab.lab import pinned
from precision_lab.lab.engine import Slot, Worker
from precision_lab.lab.plan import Plan
from precision_lab.lab.recorder import declared
from precision_lab.lab.spec import REFERENCE, Variant
from precision_lab.record.manifest import (
    Environment,
    Manifest,
    Reference,
    Status,
    Storage,
    VariantEntry,
    WorkerEntry,
)
from precision_lab.techniques.parts.weight_storage import WeightStorage


def manifest_of(
    plan: Plan,
    status: Status,
    started: str,
    worker: Worker,
    errors: Mapping[str, str],
    unsound_weights: Sequence[str] = (),
    workers: Sequence[WorkerEntry] = (),
) -> Manifest:
    """The manifest of a planned run that began at `started`. worker: the one whose environment is that of the run."""
    spec = plan.spec
    return Manifest(
        status=status,
        experiment=spec.experiment,
        command=list(spec.command),
        started=started,
        finished=None if status == "running" else now(),
        environment=Environment(**worker.environment),
        checkpoint=spec.source.checkpoint,
        layout=plan.bench.layout,
        case=dict(spec.settings),
        reference=Reference(REFERENCE, spec.reference.dtype, list(spec.reference.techniques)),
        baseline=spec.baseline,
        variants={
            v.name: variant_entry(
                v, plan.linears.get(v.name, {}), plan.weights.get(v.name, {}), plan.choices.get(v.name, {})
            )
            for v in spec.all_variants
        },
        sites=plan.coverage,
        errors=errors,
        unsound_weights=unsound_weights,
        prompts=list(spec.prompts),
        seeds=list(spec.seeds),
        latency_margin=plan.margin,
        pinned=pinned.described(spec),
        claims=[dict(claim) for claim in spec.claims],
        columns=declared(spec.probes.values()),
        notes=plan.notes,
        workers=workers,
    )


def now() -> str:
    """The time as manifests have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def variant_entry(
    variant: Variant,
    linears: Mapping[str, WeightStorage],
    weights: Mapping[str, WeightStorage],
    choices: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> VariantEntry:
    """A variant, by component how its linear weights and all its parameters are stored, and its techniques' choices."""
    return VariantEntry(
        dtype=variant.dtype,
        techniques=list(variant.techniques),
        expect=variant.expect,
        process=asdict(variant.process),
        switches=numeric_switches(variant.process.tf32),
        settings=dict(variant.settings),
        reference=variant.reference,
        linear_weights=_stored(linears),
        weights=_stored(weights),
        choices={name: dict(chosen) for name, chosen in choices.items()},
    )


def _stored(components: Mapping[str, WeightStorage]) -> dict[str, Storage]:
    """The components that have weights."""
    return {
        component: Storage(stored.weights, stored.bits // 8, stored.bits_per_weight)
        for component, stored in components.items()
        if stored.weights
    }


def worker_entry(slot: Slot) -> WorkerEntry:
    """The worker of a slot, which has made nothing yet."""
    there = slot.worker.environment
    return WorkerEntry(slot.name, slot.worker.host, there["device"], there["backend"], there["mlx"])
