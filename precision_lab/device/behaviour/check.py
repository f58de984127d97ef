"""A fault of MLX that somebody reported in public, as a check: what is right, and what this device does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from precision_lab.device.behaviour.bridge import UnavailableError
from precision_lab.device.behaviour.finding import NOT_AVAILABLE, Outcome

ABSENT, PRESENT = "absent", "present"


@dataclass(frozen=True)
class PublicFault:
    """name: of the check. links: the reports. reported: on which devices and versions, in their words.

    right: the correct result, and how it is known. op: MLX's operation on NumPy arrays. probe: applies an operation to
    the inputs that show the fault. good: the answers of the probe on a device without it.
    """

    name: str
    title: str
    links: Sequence[str]
    reported: str
    right: str
    op: Callable[..., Any]
    probe: Callable[[Any], Outcome]
    good: Sequence[str]

    def check(self, op: Callable[..., Any] | None = None) -> dict[str, Any]:
        """The entry of device.json; `op` replaces MLX's operation. The verdict is absent, present or not available."""
        try:
            outcome = self.probe(op or self.op)
        except UnavailableError as error:
            outcome = Outcome(NOT_AVAILABLE, str(error))
        verdict = ABSENT if outcome.answer in self.good else PRESENT
        value = outcome.value if outcome.value is not None and math.isfinite(outcome.value) else None
        return {
            "name": self.name,
            "title": self.title,
            "verdict": NOT_AVAILABLE if outcome.answer == NOT_AVAILABLE else verdict,
            "answer": outcome.answer,
            "measured": outcome.evidence,
            "value": value,
            "unit": outcome.unit,
            "bound": outcome.bound,
            "bound_source": outcome.source,
            "right": self.right,
            "reported": self.reported,
            "links": list(self.links),
        }
