"""What a run measures beside its generations: times, local error and pinned cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from precision_lab.errors import InputError, shown
from precision_lab.lab.values import NAMED, check_prompt, check_seed, is_name, one_of
from precision_lab.settings import is_positive

TEACHER_MODES = ("off", "sampled", "full")


@dataclass(frozen=True)
class LatencySpec:
    """Timing of one denoising step. Rounds continue until the intervals are narrow or `max_seconds` have passed.

    max_rounds: 0 measures nothing, whatever `min_rounds` is.
    margin: the relative difference in time that is ignored; None selects the default of the backend.
    """

    min_rounds: int = 10
    max_rounds: int = 100
    warmup_rounds: int = 1
    max_seconds: float = 20.0
    margin: Annotated[float, "a number above 0"] | None = None

    def __post_init__(self) -> None:
        if self.max_rounds == 0 and self.min_rounds > 0:
            object.__setattr__(self, "min_rounds", 0)
        if self.min_rounds < 0 or self.max_rounds < self.min_rounds:
            raise InputError(
                f"latency.min_rounds is {self.min_rounds} and latency.max_rounds {self.max_rounds}, "
                "expected 0 <= min_rounds <= max_rounds (max_rounds=0 measures nothing)"
            )
        if self.warmup_rounds < 0:
            raise InputError(f"latency.warmup_rounds is {self.warmup_rounds}, expected at least 0")
        if not is_positive(self.max_seconds):
            raise InputError(f"latency.max_seconds is {self.max_seconds}, expected above 0")
        if self.margin is not None and not is_positive(self.margin):
            raise InputError(f"latency.margin is {self.margin!r}, expected a number above 0, or null")


@dataclass(frozen=True)
class TeacherSpec:
    """The modules and steps at which local error is measured, on the reference's inputs.

    mode: off; sampled (the first, middle and last step of the first case); or full (every step of every case).
    """

    sites: Sequence[str] = ()
    mode: str = "off"

    def __post_init__(self) -> None:
        one_of("drift.teacher.mode", self.mode, TEACHER_MODES)
        if self.mode != "off" and not self.sites:
            raise InputError("drift.teacher.sites is empty, expected patterns of sites, or drift.teacher.mode=off")

    def steps(self, count: int, case: int) -> frozenset[int]:
        """The steps to measure, out of the `count` steps of case number `case`."""
        if self.mode == "full":
            return frozenset(range(count))
        return frozenset({0, count // 2, count - 1}) if self.mode == "sampled" and case == 0 else frozenset()


@dataclass(frozen=True)
class PinnedCase:
    """One generation of the plain model; `settings` override those of the run.

    faint: patterns of norms whose inputs are scaled to an rms of 1e-3 in this case, so that their eps matters.
    """

    prompt: str = ""
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    faint: Sequence[str] = ()


@dataclass(frozen=True)
class PinnedSpec:
    """Cases whose fp32 reference is recorded as sketches of the arrays at `sites`. By default there are no cases.

    record: whether the run generates them, which only a gate compares; they are checked in any case. noise_floor:
    whether to record the same for a model in which the linears at `reordered` sum in another order.
    """

    cases: Mapping[str, PinnedCase] = field(default_factory=dict)
    sites: Sequence[str] = ()
    steps: int = 3
    noise_floor: bool = False
    reordered: Sequence[str] = ()
    record: bool = False

    @property
    def recorded(self) -> Mapping[str, PinnedCase]:
        """The cases that the run generates."""
        return self.cases if self.record else {}

    def __post_init__(self) -> None:
        for name, case in self.cases.items():
            if not is_name(name):
                raise InputError(f"Pinned case {shown(name)}: expected {NAMED}")
            check_prompt(f"pinned.cases.{name}.prompt", case.prompt)
            check_seed(f"pinned.cases.{name}.seed", case.seed)
        if self.steps < 1:
            raise InputError(f"pinned.steps is {self.steps}, expected at least 1")
        if not isinstance(self.noise_floor, bool):
            raise InputError(f"pinned.noise_floor is {self.noise_floor!r}, expected true or false")
        if not isinstance(self.record, bool):
            raise InputError(f"pinned.record is {self.record!r}, expected true or false")
        if self.cases and not self.sites:
            raise InputError("pinned.sites is empty, expected patterns of sites; pinned.cases=null pins nothing")
        if self.cases and self.noise_floor and not self.reordered:
            raise InputError("pinned.reordered is empty, expected patterns of linears, or pinned.noise_floor=false")
        if self.noise_floor and not self.record:
            raise InputError("pinned.noise_floor is that of the pinned cases, expected pinned.record=true as well")
