"""What the manifest of a run says of its variants and workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from precision_lab.device.environment import numeric_switches
from precision_lab.lab.engine import Slot
from precision_lab.lab.spec import Variant
from precision_lab.record.manifest import Storage, VariantEntry, WorkerEntry
from precision_lab.techniques.parts.weight_storage import WeightStorage


def variant_entry(variant: Variant, stored: Mapping[str, WeightStorage]) -> VariantEntry:
    """A variant, and by component how its linear weights are stored."""
    return VariantEntry(
        dtype=variant.dtype,
        techniques=list(variant.techniques),
        expect=variant.expect,
        process=asdict(variant.process),
        switches=numeric_switches(variant.process.tf32),
        settings=dict(variant.settings),
        reference=variant.reference,
        linear_weights={
            component: Storage(weights.weights, weights.bits // 8, weights.bits_per_weight)
            for component, weights in stored.items()
            if weights.weights
        },
    )


def worker_entry(slot: Slot) -> WorkerEntry:
    """The worker of a slot, which has made nothing yet."""
    there = slot.worker.environment
    return WorkerEntry(slot.name, slot.worker.host, there["device"], there["backend"], there["mlx"])
