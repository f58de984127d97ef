"""The violations that a gate reports, one per address and metric, and the order in which they should be read.

In a residual stream, the largest deviation is far downstream of the operation that caused it. Violations are therefore
listed in order of execution, each with its magnitude.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from precision_lab.record.files import number_or_reason

KINDS = (
    *("variants", "sites", "sketches", "dtypes", "rounding", "nonfinite", "ranges", "headroom", "drift"),
    *("latency", "memory"),
)
"""The kinds of comparison of a gate, counted separately: a kind without comparisons has not passed."""

RAISED = "raised"
"""The metric of a variant that raised an exception, for which nothing can be compared."""

UNSOUND = "unsound"
"""The metric of a reason to doubt the run as a whole; see `precision_lab.analysis.health`."""


@dataclass(frozen=True)
class Violation:
    """One metric of one address outside the limits of the baseline.

    branch, step, order, case, expected and got describe the first deviating array; `order` numbers the observations of
    a generation, and is None without a site (times). `magnitude` is the largest over all `count` deviating arrays, in
    bits beyond the limit: log2 of got / limit, or infinity without a number (a dtype, a missing site, NaN). pinned:
    whether it is from a pinned case, whose expected value is known to the last digits. shown: the site as written in a
    pattern, with its port. early: whether the component runs before the first step.
    """

    kind: str
    metric: str
    expected: str
    got: str
    variant: str = "-"
    component: str = "-"
    site: str = "-"
    port: str = "-"
    branch: str | None = None
    step: int | None = None
    order: int | None = None
    case: str = "-"
    magnitude: float = math.inf
    count: int = 1
    pinned: bool = False
    shown: str = ""
    early: bool = False

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    @property
    def address(self) -> str:
        """The site as written in a pattern, with its port; without a site, a name such as `latency`."""
        return self.shown or self.metric

    def to_json(self) -> dict[str, Any]:
        """An entry of gate.json as strict JSON, in which an infinite magnitude is null."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("shown", "early", "magnitude")}
        magnitude = number_or_reason("magnitude", self.magnitude, "no number says how much")
        return fields | {"address": self.address} | magnitude


@dataclass
class Findings:
    """Violations, and the number of comparisons of each kind."""

    violations: list[Violation] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)

    def add(self, other: Findings) -> None:
        self.violations += other.violations
        self.checks += other.checks


@dataclass(frozen=True)
class SiteLine:
    """All violations at one address, over all variants, beginning with the first."""

    violations: Sequence[Violation]

    @property
    def first(self) -> Violation:
        return self.violations[0]

    @property
    def variants(self) -> Sequence[str]:
        return tuple(dict.fromkeys(violation.variant for violation in self.violations))

    @property
    def magnitude(self) -> float:
        return max(violation.magnitude for violation in self.violations)


def ordered(violations: Iterable[Violation]) -> list[Violation]:
    """Violations sorted by the first deviating step, then by order of execution.

    Components before the denoising loop (the text encoder) precede step 0, those after it (the VAE) follow the last
    step, and violations without a site come last. Within a step, pinned cases come first: they show a deviation where
    it arises, whereas the bands of other cases show it only when it exceeds the spread over prompts and seeds.
    """
    return sorted(violations, key=_moment)


def by_site(violations: Iterable[Violation]) -> list[SiteLine]:
    """Violations in order, grouped by address at the position of the first in the group.

    Violations without a site (times, a variant that raised) are not grouped.
    """
    lines: dict[tuple[str, ...], list[Violation]] = {}
    for v in ordered(violations):
        by_itself = (v.variant, v.metric) if v.site == "-" else ()
        lines.setdefault((v.component, v.site, v.port, *by_itself), []).append(v)
    return [SiteLine(tuple(group)) for group in lines.values()]


def _moment(v: Violation) -> tuple[object, ...]:
    order = math.inf if v.order is None else v.order
    return _phase(v), -1 if v.step is None else v.step, not v.pinned, order, KINDS.index(v.kind), v.variant, v.metric


def _phase(v: Violation) -> int:
    """The sort key of before, in or after the loop; what ended or invalidates a run is first, what has no site last."""
    if v.metric in (RAISED, UNSOUND):
        return -1
    if v.order is None:
        return 3
    if v.step is not None:
        return 1
    return 0 if v.early else 2
