"""The result of a probe (Outcome), and the operation, format and property that it describes (Finding)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NOT_AVAILABLE = "not available"


@dataclass(frozen=True)
class Outcome:
    """One behaviour: its name, one sentence of evidence, and the measured value.

    bound: what the value may be at most if the operation is as precise as it can be, with the bound's source; None
    without one. bounds: what it may be at most in arithmetic of each width, by the width's name; meets: the first of
    them that holds.
    """

    answer: str
    evidence: str
    value: float | None = None
    unit: str = ""
    bound: float | None = None
    source: str = ""
    bounds: Mapping[str, float] = field(default_factory=dict)
    meets: str | None = None


@dataclass(frozen=True)
class Finding:
    """An outcome with its operation, storage dtype, property, and the sizes of the inputs."""

    op: str
    dtype: str
    property: str
    outcome: Outcome
    parameters: Mapping[str, int | str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The finding as strict JSON: a missing or non-finite value is null, with a `value_reason`."""
        value = self.outcome.value
        entry: dict[str, Any] = {
            "op": self.op,
            "dtype": self.dtype,
            "property": self.property,
            "parameters": dict(self.parameters),
            "answer": self.outcome.answer,
            "value": value if value is not None and math.isfinite(value) else None,
        }
        if entry["value"] is None:
            entry["value_reason"] = "none measured" if value is None else "non-finite"
        entry |= {"unit": self.outcome.unit, "evidence": self.outcome.evidence}
        if self.outcome.bound is not None:
            entry |= {"bound": self.outcome.bound, "bound_source": self.outcome.source}
        if self.outcome.bounds:
            entry |= {"bounds": dict(self.outcome.bounds), "meets": self.outcome.meets}
        return entry
