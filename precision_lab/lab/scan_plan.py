"""The plan of a scan of sensitivity: everything that can be known, checked and refused before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site
from precision_lab.lab import plan as plans
from precision_lab.lab import slots
from precision_lab.lab.bench import Bench
from precision_lab.lab.candidates import Candidate
from precision_lab.lab.forced import Forced
from precision_lab.lab.groups import DEFAULT_KEYS, Group, groups_of
from precision_lab.lab.injections import Injection, Unfit, injections_of, places_of_noise
from precision_lab.lab.outline import counted, resources
from precision_lab.lab.sensitivity import scanned, scanned_variant
from precision_lab.lab.spec import LOCAL, RunSpec
from precision_lab.lab.subject import Case

STEPS = 3
"""The default number of steps: the first, the middle and the last."""


@dataclass(frozen=True)
class ScanSpec:
    """What is scanned, and how.

    - run: the source, the cases, the folder and the engine. Its baseline variant is the plain model, in the dtype that
      candidates compute in too.
    - candidates: to measure. noise: equivalent rewrites, whose largest error is the noise floor.
    - of: patterns of the sites, None for the linears of the default component. by: see `groups_of`.
    - steps: their numbers, None for the first, the middle and the last. cases: how many of the run's, None for all.
    - rounds: of timing, 0 for none.
    """

    run: RunSpec
    candidates: Sequence[Candidate]
    noise: Sequence[Candidate] = ()
    of: Sequence[str] | None = None
    by: Sequence[str] = DEFAULT_KEYS
    steps: Sequence[int] | None = None
    cases: int | None = None
    rounds: int = 0

    @property
    def scanned(self) -> list[Case]:
        """The cases that are scanned."""
        return self.run.cases[: self.cases]


@dataclass(frozen=True)
class ScanPlan:
    """A scan that can be carried out.

    steps: of each case. costs: of each injection in one step, in passes. weights: number and stored bits of the linear
    at each address.
    """

    spec: ScanSpec
    plan: plans.Plan
    groups: Sequence[Group]
    injections: Sequence[Injection]
    noise: Sequence[Injection]
    unfit: Sequence[Unfit]
    steps: Mapping[Case, tuple[int, ...]]
    costs: Mapping[str, float]
    sites: Mapping[str, Site] = field(repr=False)
    notes: Sequence[str] = ()

    @property
    def bench(self) -> Bench:
        return self.plan.bench

    @property
    def passes(self) -> float:
        """What all injections cost."""
        return sum(
            self.costs[each.group.name] * len(steps)
            for steps in self.steps.values()
            for each in (*self.injections, *self.noise)
        )

    def outline(self, confirmed: int) -> list[str]:
        """What the scan is about to do, in a few lines. confirmed: generations of each case that follow."""
        spec, cases = self.spec, self.steps
        steps = sorted({step for numbers in cases.values() for step in numbers})
        first = (
            f"{spec.run.experiment}: {counted(len(self.groups), 'group')} of sites, "
            f"{counted(len(self.injections), 'pair')} of group and candidate that fit "
            f"({', '.join(candidate.name for candidate in spec.candidates)}), "
            f"step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))} of {counted(len(cases), 'case')}: "
            f"about {counted(round(self.passes), 'pass', 'passes')} of the model"
        )
        measured = ["local error", "error of the output"]
        if self.noise:
            measured.append(f"noise floor (at {counted(len(self.noise), 'place')})")
        if confirmed:
            measured.append(f"free drift ({counted(confirmed * len(cases), 'generation')})")
        if spec.rounds:
            measured.append(f"time of the modules ({counted(spec.rounds, 'round')})")
        return [first, *resources(self.plan, measured)]


def plan(spec: ScanSpec) -> ScanPlan:
    """Checks `spec` against its subject. Nothing is computed or written. Raises InputError if it cannot be scanned."""
    planned = plans.plan(spec.run)
    bench, cases = planned.bench, spec.scanned
    if any(variant.techniques or variant.settings for variant in spec.run.variants):
        raise InputError(
            "sensitivity scans the plain model; expected no techniques of its own, but candidate=[NAME,...]"
        )
    steps = {case: _steps(spec.steps, bench.steps(case)) for case in cases}
    forced = Forced(scanned(bench), bench.layout, cases[0], steps[cases[0]])
    groups = groups_of(forced.components, spec.of, spec.by)
    injections, unfit = injections_of(forced.components, forced.sites, groups, spec.candidates)
    noise: list[Injection] = []
    for rewrite in spec.noise:
        with suppress(InputError):  # it fits no site of any group: there is no floor
            noise += injections_of(forced.components, forced.sites, places_of_noise(groups), [rewrite])[0]
    forced.trace()
    called = max(1, sum(bool(forced.calls([site], steps[cases[0]][0])) for site in forced.recording.blocks))
    costs = {}
    for group in groups:
        spared = forced.recording.before([forced.sites[address] for address in group.sites])
        costs[group.name] = 1 - sum(bool(forced.calls([site], steps[cases[0]][0])) for site in spared) / (called + 1)
    notes = [*planned.notes, *_notes(forced, groups, unfit, steps[cases[0]][0])]
    made = ScanPlan(spec, planned, groups, injections, noise, unfit, steps, costs, forced.sites, notes)
    if spec.run.engine != LOCAL:
        return made
    size = sum(weights.bits // 8 for weights in planned.linears[scanned_variant(bench).name].values())
    return replace(made, plan=replace(planned, workers=slots.workers(spec.run, int(made.passes), size)))


def _steps(given: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The numbers of the steps to measure, of `count`."""
    if given is None:
        return tuple(sorted({round(at * (count - 1) / (STEPS - 1)) for at in range(STEPS)}))
    if not given:
        raise InputError("scan.steps is [], expected numbers of steps, or null for the first, the middle and the last")
    for number in given:
        if not 0 <= number < count:
            raise InputError(f"scan.steps holds {number}, expected numbers from 0 to {count - 1}, the last step")
    if len(set(given)) < len(given):
        raise InputError(f"scan.steps is {list(given)}, expected each step once")
    return tuple(sorted(given))


def _notes(forced: Forced, groups: Sequence[Group], unfit: Sequence[Unfit], step: int) -> list[str]:
    notes = []
    if forced.recording.unfit:
        site, reason = next(iter(forced.recording.unfit.items()))
        number = len(forced.recording.unfit)
        notes.append(f"{number} blocks are computed in every pass, since they cannot be recalled: {site}: {reason}")
    uncalled = [
        group.name for group in groups if not forced.calls([forced.sites[address] for address in group.sites], step)
    ]
    if uncalled:
        notes.append(
            f"{len(uncalled)} groups are not called in the main branch of a step, so that their errors are 0 or "
            f"undefined: {uncalled[0]}"
        )
    for candidate in dict.fromkeys(each.candidate for each in unfit):
        own = [each for each in unfit if each.candidate == candidate]
        notes.append(f"{candidate} is not applicable to {len(own)} of {len(groups)} groups: {own[0].reason}")
    return notes
