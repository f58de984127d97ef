"""The violations that a gate finds, one for each address and metric, and the order in which to read them.

In a residual stream the largest deviation is far downstream of the operation that caused it. Violations are therefore
read in the order of execution; the size of each is shown beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from precision_lab.record.files import number_or_reason

KINDS = ("variants", "sites", "sketches", "dtypes", "nonfinite", "ranges", "headroom", "drift", "latency", "memory")
"""The kinds of comparison, each counted by itself: a kind without comparisons has not passed."""

RAISED = "raised"
"""The metric of a variant that raised: nothing of it can be compared."""


@dataclass(frozen=True)
class Violation:
    """One metric of one address outside the limits of the baseline.

    branch, step, order, case, expected and got are those of the first array that deviates: `order` counts the
    observations of a generation, None for what belongs to no site (times). `magnitude` is the largest over all `count`
    arrays that deviate, in bits beyond the limit: log2 of got / limit, infinity where no number says how much (a dtype,
    a site gone, NaN). pinned: seen in a pinned case, whose expected value is known to the last digits. shown: the site
    as a pattern names it, with its port. early: of a component that runs before the first step.
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
        """The site as a pattern names it, with its port; `latency` and the like for what has no site."""
        return self.shown or self.metric

    def to_json(self) -> dict[str, Any]:
        """An entry of gate.json: strict JSON, an infinite magnitude is null."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("shown", "early", "magnitude")}
        magnitude = number_or_reason("magnitude", self.magnitude, "no number says how much")
        return fields | {"address": self.address} | magnitude


@dataclass
class Findings:
    """Violations, and how many comparisons of each kind were made."""

    violations: list[Violation] = field(default_factory=list)
    checks: Counter[str] = field(default_factory=Counter)

    def add(self, other: Findings) -> None:
        self.violations += other.violations
        self.checks += other.checks


@dataclass(frozen=True)
class SiteLine:
    """All violations at one address, of whatever variants, the first of them leading."""

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
    """First deviating step first, then execution order.

    What precedes the denoising loop (the text encoder) comes before step 0, what follows it (the VAE) after the last
    step, and what has no site at the end. Within a step the pinned cases lead: they show a deviation where it arises,
    bands of other cases only once it has grown beyond the spread over prompts and seeds.
    """
    return sorted(violations, key=_moment)


def by_site(violations: Iterable[Violation]) -> list[SiteLine]:
    """Violations in order, those of one address together at the place of the first.

    Violations without a site (times, a variant that raised) are listed by themselves.
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
    """Before, in or after the loop; a variant that raised leads, what belongs to no site comes last."""
    if v.metric == RAISED:
        return -1
    if v.order is None:
        return 3
    if v.step is not None:
        return 1
    return 0 if v.early else 2
