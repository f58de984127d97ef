"""Measures what candidates do at groups of sites: the error of the modules, and that of the model's output.

Local error: the modules of a candidate on the inputs that the plain model has there. Error of the output: a pass from
the plain model's state with the candidate at one group. Neither contains the error of earlier steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.device.environment import backend
from precision_lab.errors import InputError
from precision_lab.instrument.arrays import real, to_numpy
from precision_lab.instrument.replay import Phase, mutable_value
from precision_lab.instrument.sites import Site
from precision_lab.instrument.swap import swapped
from precision_lab.instrument.tap import Call, ports, tapped
from precision_lab.lab.bench import Advance, Bench
from precision_lab.lab.forced import Forced
from precision_lab.lab.injections import Injection, Rewrites
from precision_lab.lab.spec import Variant
from precision_lab.lab.subject import Case, generation
from precision_lab.lab.tasks import Make
from precision_lab.numerics.metrics import compare
from precision_lab.record import scan_tables, tables
from precision_lab.record.address import NO_STREAM
from precision_lab.record.files import File

_PAIRS = 32


@dataclass(frozen=True)
class Measure:
    """Measures candidates at groups in some steps of a case; leaves a part of the table.

    table, part: where the rows belong. injections: those at one group are adjacent. costs: of each, in passes.
    """

    table: str
    part: str
    case: Case
    steps: tuple[int, ...]
    injections: tuple[Injection, ...]
    costs: tuple[float, ...]
    references: tuple[Make, ...] = ()

    def __call__(self, bench: Bench, advance: Advance) -> list[File]:
        forced = recorded(bench, self.case, self.steps)
        modules = _modules(self.injections, forced.sites)
        local = {step: _local_errors(forced, self.injections, modules, step) for step in self.steps}
        rows = []
        numbered = enumerate(self.injections)
        for _, at_group in groupby(numbered, key=lambda each: each[1].group):
            members = list(at_group)
            altered = [forced.sites[address] for address in members[0][1].group.sites]
            with forced.altering(altered) as spared:
                for number, injection in members:
                    with swapped(forced.components, modules[number]):
                        for step in self.steps:
                            found = _error(forced.run(step, altered), forced.outputs[step])
                            rows.append(
                                {
                                    **_labels(injection, self.case),
                                    "step": step,
                                    "sigma": forced.sigmas[step],
                                    "local_error": local[step][number],
                                    "velocity_error": found["rel_l2"],
                                    "num_nonfinite": found["num_nonfinite"],
                                    "bytes_saved": injection.bytes_saved,
                                    "num_sites": len(injection.sites),
                                    "num_recalled": spared,
                                }
                            )
                            advance(self.costs[number] / len(self.steps), injection.candidate.name)
        if backend() != "cpu":  # arrays that candidates prepared; see `Bench.make`
            mx.clear_cache()
        return [tables.part_of(self.table, self.part, rows)]


@dataclass(frozen=True)
class Confirm:
    """Generates a case with a candidate at a group; leaves the drift of its last result."""

    part: str
    case: Case
    steps: tuple[int, ...]
    injection: Injection
    references: tuple[Make, ...] = ()

    def __call__(self, bench: Bench, advance: Advance) -> list[File]:
        forced = recorded(bench, self.case, self.steps)
        [modules] = _modules([self.injection], forced.sites)
        result = None
        with swapped(forced.components, modules):
            for _, step in generation(scanned(bench), self.case, bench.steps(self.case)):
                result = step.result
                advance(1, self.injection.candidate.name)
        assert result is not None, "a generation has at least one step"
        assert forced.result is not None, "the plain generation is recorded"
        found = _error(result, forced.result)
        labels = {key: _labels(self.injection, self.case)[key] for key in ("group", "candidate", "prompt_id", "seed")}
        row = {**labels, "free_drift": found["rel_l2"], "num_nonfinite": found["num_nonfinite"]}
        return [tables.part_of(scan_tables.DRIFT, self.part, [row])]


@dataclass(frozen=True)
class TimeModules:
    """Times the modules of candidates against the plain ones, on the same inputs; leaves their medians."""

    part: str
    case: Case
    step: int
    steps: tuple[int, ...]
    injections: tuple[Injection, ...]
    rounds: int
    references: tuple[Make, ...] = ()

    def __call__(self, bench: Bench, advance: Advance) -> list[File]:
        forced = recorded(bench, self.case, self.steps)
        modules = _modules(self.injections, forced.sites)
        calls: list[Call] = []

        def on_call(call: Call) -> None:
            if Phase.now().step == self.step and mutable_value(call) is None:
                calls.append(call)

        sites = list(dict.fromkeys(site for own in modules for site in own))
        with forced.altering(sites), tapped(sites, on_call):
            mx.eval(forced.run(self.step, sites))
        mx.eval([(call.args, call.kwargs) for call in calls])
        saved = [
            sum(_time_saved(call, own[call.site], self.rounds) for call in calls if call.site in own) for own in modules
        ]
        advance(len(self.injections), "timing")
        rows = [
            {"group": each.group.name, "candidate": each.candidate.name, "seconds_saved": saved[number]}
            for number, each in enumerate(self.injections)
        ]
        return [tables.part_of(scan_tables.SECONDS, self.part, rows)]


def scanned_variant(bench: Bench) -> Variant:
    """The plain model of a scan, in the dtype in which candidates compute too."""
    return next(variant for variant in bench.spec.variants if variant.name == bench.spec.baseline)


def scanned(bench: Bench) -> Any:
    """Its subject."""
    return bench.subject(scanned_variant(bench).dtype)


@lru_cache(maxsize=1)
def recorded(bench: Bench, case: Case, steps: tuple[int, ...]) -> Forced:
    """The plain generation of a case, made once in a process. Raises InputError if an output is not finite."""
    forced = Forced(scanned(bench), bench.layout, case, steps)
    forced.record(bench.steps(case))
    for step, output in forced.outputs.items():
        if not mx.isfinite(real(output)).all():
            raise InputError(
                f"The plain model in {scanned_variant(bench).dtype} has an output that is not finite, in step {step} "
                f"of prompt {case.prompt_id}, so no error can be measured. dtype=float32 has the largest range"
            )
    return forced


def _labels(injection: Injection, case: Case) -> dict[str, Any]:
    group = injection.group
    return {
        "group": group.name,
        "component": group.component or NO_STREAM,
        "block": group.block,
        "operation": group.operation,
        "stream": group.stream or NO_STREAM,
        "candidate": injection.candidate.name,
        "prompt_id": case.prompt_id,
        "seed": case.seed,
    }


def _modules(injections: Sequence[Injection], sites: Mapping[str, Site]) -> list[dict[Site, nn.Module]]:
    """The replacements of each injection; each weight is quantised once, when it is first used."""
    rewrites: dict[str, Rewrites] = {}
    for candidate in {injection.candidate.name: injection.candidate for injection in injections}.values():
        own = (each.sites for each in injections if each.candidate == candidate)
        rewrites[candidate.name] = Rewrites(candidate, {address for each in own for address in each}, sites)
    found = []
    for injection in injections:
        own_rewrites = rewrites[injection.candidate.name]
        modules = {sites[address]: own_rewrites.at(address) for address in injection.sites}
        found.append({site: module for site, module in modules.items() if module is not None})
    return found


def _local_errors(
    forced: Forced, injections: Sequence[Injection], modules: Sequence[Mapping[Site, nn.Module]], step: int
) -> list[float]:
    """For each injection, the root mean square over the calls of its modules of the relative L2 error of their outputs.

    NaN if an output is not finite, or if a module cannot be called twice.
    """
    squares: list[list[float]] = [[] for _ in injections]
    pending: list[tuple[int, mx.array, mx.array]] = []
    repeating = False  # a replacement may call the module that it replaces

    def flush() -> None:
        mx.eval([array for _, *pair in pending for array in pair])
        for number, own, plain in pending:
            squares[number].append(_error(own, plain)["rel_l2"] ** 2)
        pending.clear()

    def on_call(call: Call) -> None:
        nonlocal repeating
        if repeating or Phase.now() not in forced.recording.phases(call.site):
            return
        again = mutable_value(call) is None
        for number, own in enumerate(modules):
            if call.site in own and not again:
                squares[number].append(np.nan)
            elif call.site in own:
                repeating = True
                output = own[call.site](*call.args, **call.kwargs)
                repeating = False
                pairs = zip(ports(call._replace(output=output), ["out"]), ports(call, ["out"]), strict=True)
                pending.extend((number, theirs.array, plain.array) for theirs, plain in pairs)
        if len(pending) >= _PAIRS:
            flush()

    sites = list(dict.fromkeys(site for own in modules for site in own))
    with forced.altering(sites), tapped(sites, on_call):
        forced.run(step, sites)  # what is not needed for the modules' outputs is never computed
    flush()
    return [float(np.sqrt(np.mean(each))) if each else np.nan for each in squares]


def _error(x: mx.array, reference: mx.array) -> dict[str, float]:
    x, reference = real(x), real(reference)
    mx.eval(x, reference)
    values = compare(to_numpy(x), to_numpy(reference)).values
    return {name: values[name] for name in ("rel_l2", "num_nonfinite")}


def _time_saved(call: Call, module: nn.Module, rounds: int) -> float:
    """Median of the paired differences of seconds, plain module minus `module`, after one call of each."""
    site = call.site
    differences = []
    for number in range(rounds + 1):
        plain, own = (_seconds(each, call) for each in (site.module, module))
        if number:
            differences.append(plain - own)
    return float(np.median(differences))


def _seconds(module: nn.Module, call: Call) -> float:
    started = time.perf_counter()
    mx.eval(module(*call.args, **call.kwargs))
    return time.perf_counter() - started


def in_chunks(
    injections: Sequence[Injection], costs: Iterable[float], most: float
) -> list[tuple[tuple[Injection, ...], tuple[float, ...]]]:
    """The injections in chunks of whole groups that cost at most `most` passes, or one group more."""
    chunks: list[list[tuple[Injection, float]]] = [[]]
    total = 0.0
    for _, at_group in groupby(zip(injections, costs, strict=True), key=lambda each: each[0].group):
        members = list(at_group)
        if total >= most:
            chunks.append([])
            total = 0.0
        chunks[-1] += members
        total += sum(cost for _, cost in members)
    return [(tuple(i for i, _ in chunk), tuple(c for _, c in chunk)) for chunk in chunks if chunk]
