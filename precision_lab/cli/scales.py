"""`search strategy=scales`: power-of-two scales from recorded ranges, tried on cases that they were not chosen from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from precision_lab.analysis.scales.choice import Goal, Parameter, choose
from precision_lab.analysis.scales.ranges import at_places, ranges_of, stored_in
from precision_lab.cli import scales_schema, schema
from precision_lab.cli.config import plain
from precision_lab.cli.folders import stamped
from precision_lab.cli.literal import settled
from precision_lab.cli.scale_cases import (
    RECIPE,
    carried_out,
    check_resumed,
    check_variants,
    coverage_of,
    heldout_of,
    opened,
    spec_for,
    write_config,
)
from precision_lab.cli.scale_recipe import Nodes, Offered, recipe_of
from precision_lab.cli.terminal import open_console
from precision_lab.device.environment import set_numeric_switches
from precision_lab.errors import InputError, nearest
from precision_lab.instrument.sites import Site, walk
from precision_lab.lab.bench import Bench
from precision_lab.lab.compute import Compute
from precision_lab.numerics.formats import format_named
from precision_lab.record.folders import user_path
from precision_lab.record.glob import named_sites
from precision_lab.record.patterns import patterns_of
from precision_lab.record.run import Run

BASELINE = {"baseline": {"dtype": "bfloat16"}}
"""The variant of coverage runs beside the reference: what it stores in 16 bits, and ranges with its errors."""


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Records ranges, chooses scales, tries them; prints what they do beside others and the path of the page.

    Scales that fail on a held-out case are a result, and exit 0; a gated claim that is refuted exits 1.
    """
    set_numeric_switches()
    config = settled(config)
    settings = schema.read(scales_schema.Scales, config)
    # after the mistakes that a configuration shows: these imports take longer than to find them
    from precision_lab.cli.scale_results import Trial, conclude
    from precision_lab.lab.plan import plan

    if settings.strategy != "scales":
        raise InputError(f"search: unknown strategy {settings.strategy!r}. {nearest(settings.strategy, ['scales'])}")
    if isinstance(settings.dtype, str) and settings.dtype.startswith(("float8", "fp8")):
        raise InputError(
            f"dtype is {settings.dtype}, expected float16: no technique takes a chosen scale for fp8. "
            "search strategy=fp8_scales chooses the kind of scale of each weight"
        )
    compute = Compute.read("dtype", settings.dtype)
    goal = Goal(format_named(_narrow(compute)), settings.margin.bits)
    offered = Offered.of(config)
    check_variants(settings, RECIPE)
    variants = {str(name): plain(node or {}) for name, node in config.variants.items()}
    out = user_path(settings.out) if settings.out else stamped(settings.experiment)
    check_resumed(settings, out)
    covering, trying = coverage_of(settings, config), heldout_of(settings, config)
    own = {"dtype": plain(config)["dtype"], "technique": {}}
    runs_on: dict[str, Any] = {"variants": BASELINE, "baseline": "baseline", "claims": {}, "only": None}
    tries_on: dict[str, Any] = {"variants": {**variants, RECIPE: own}}
    if settings.only is not None:
        tries_on["only"] = [*settings.only, RECIPE]

    bench = Bench(spec_for(config, trying[0], out, command, ["**"], **tries_on))
    if not bench.spec.has_plain_reference:
        raise InputError("scales are chosen from the ranges of the plain model in float32, expected no other reference")
    sites = walk(bench.components("float32"))
    recorded = _operations(sites, bench.layout.default)
    places = [(site.component, site.path) for site in sites]
    if not any(named_sites(parameter.places, places, bench.layout.default) for parameter in offered.parameters):
        names = ", ".join(offered.scalings)
        raise InputError(f"This model has none of the places that {names} divide, expected scalings that fit it")
    planned = [spec_for(config, cases, out, command, recorded, **runs_on) for cases in covering]
    # whatever is wrong with any set of cases is said before anything is written
    for spec in (*planned, *(spec_for(config, cases, out, command, recorded, **tries_on) for cases in trying)):
        plan(spec)
    finished = opened(settings.coverage.runs, bench.source.checkpoint.fingerprint)

    console = open_console()
    covered = finished or {spec.out.name: carried_out(spec, console) for spec in planned}
    ranges = _ranges(covered, compute, goal, offered.parameters, sites)
    choice = choose(ranges, offered.parameters, goal, bench.layout)
    nodes = recipe_of(offered, choice, ranges, sites, bench.layout)
    tries_on["variants"][RECIPE]["technique"] = dict(nodes)
    tried = {
        cases.name: carried_out(spec_for(config, cases, out, command, recorded, **tries_on), console)
        for cases in trying
    }
    noise = settings.noise if settings.only is None or settings.noise in settings.only else None
    write_config(config, out)
    return conclude(
        Trial(choice, nodes, {**_computing_in(variants, compute), RECIPE: nodes}, ranges, covered, tried, noise, out),
        console,
    )


def _narrow(compute: Compute) -> str:
    """The only format narrower than float32 among the dtypes of the components."""
    found = sorted({compute.default, *dict(compute.others).values()} - {"float32"})
    if len(found) != 1:
        given = " and ".join(found) or "float32"
        raise InputError(f"dtype is {given}, expected one format that scales are chosen for, dtype=float16")
    return found[0]


def _computing_in(variants: Mapping[str, Mapping[str, Any]], compute: Compute) -> dict[str, Nodes]:
    """The nodes of the techniques of the variants whose components compute in these dtypes."""
    return {
        name: node.get("technique") or {}
        for name, node in variants.items()
        if Compute.read("dtype", node.get("dtype") or str(compute), compute.default) == compute
    }


def _operations(sites: Sequence[Site], default: str) -> list[str]:
    """Patterns of the modules without modules inside, whose outputs the range catalogue records."""
    everything = [(site.component, site.path) for site in sites]
    leaves = [(site.component, site.path) for site in sites if not site.module.children()]
    return patterns_of(leaves, everything, default)


def _ranges(
    runs: Mapping[str, Run], compute: Compute, goal: Goal, parameters: Sequence[Parameter], sites: Sequence[Site]
) -> pd.DataFrame:
    """The ranges of the plain model in the coverage set, at the places whose results are to be in the format.

    Those are the results that the plain model in bfloat16 stores in 16 bits; without one, all of a component that is to
    compute in the format. Raises InputError for runs that did not record what the scales divide.
    """
    plain_ones = {
        name: [v for v, entry in run.manifest.variants.items() if not entry.techniques and entry.dtype == "bfloat16"]
        for name, run in runs.items()
    }
    frames = []
    for name, run in runs.items():
        if not run.manifest.reference.is_plain:
            raise InputError(f"{run.path}: its reference is {run.manifest.reference.words}, expected the plain model")
        frames.append(ranges_of({name: run}, [run.reference, *plain_ones[name]]))
    found = pd.concat(frames, ignore_index=True)
    found = found[found["component"].map(lambda name: str(compute.of(name)).endswith(goal.fmt.name))]
    stored = set().union(*(stored_in(found, variant, "bfloat16") for own in plain_ones.values() for variant in own))
    if stored:
        found = at_places(found, stored)
    layout = next(iter(runs.values())).layout
    everything = [(site.component, site.path) for site in sites if not site.module.children()]
    recorded = set(found[["component", "site"]].itertuples(index=False, name=None))
    for parameter in parameters:
        missing = [
            place for place in named_sites(parameter.places, everything, layout.default) if place not in recorded
        ]
        if missing:
            raise InputError(
                f"{next(iter(runs.values())).path} did not record {layout.address(*missing[0])}, which {parameter} "
                f"divides, nor {len(missing) - 1} others. Expected a run with probe.range.sites=['**']"
            )
    return found.reset_index(drop=True)
