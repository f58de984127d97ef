"""`search strategy=fp8_scales`: the coarsest scale of each weight in e4m3 that keeps it in range, and static scales of
the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from precision_lab.analysis.scales.choice import Goal
from precision_lab.analysis.scales.drift import compared, drifts
from precision_lab.analysis.scales.evidence import case_sets, names_of, number, strict
from precision_lab.analysis.scales.inputs import chosen_inputs
from precision_lab.analysis.scales.weights import KINDS, chosen
from precision_lab.cli import fp8_inputs, scales_schema, schema
from precision_lab.cli.config import plain
from precision_lab.cli.folders import stamped
from precision_lab.cli.literal import settled
from precision_lab.cli.report import judge_and_draw
from precision_lab.cli.scale_cases import (
    Cases,
    carried_out,
    check_resumed,
    check_variants,
    coverage_of,
    heldout_of,
    opened,
    sets_of,
    spec_for,
    write_config,
)
from precision_lab.cli.scale_recipe import write_recipe
from precision_lab.cli.scales import BASELINE
from precision_lab.cli.terminal import open_console, print_table
from precision_lab.device.environment import set_numeric_switches
from precision_lab.instrument.sites import Site, select, walk
from precision_lab.lab.bench import Bench
from precision_lab.lab.plan import plan
from precision_lab.lab.weight_ranges import weight_ranges
from precision_lab.numerics.formats import FORMATS
from precision_lab.record.files import write_atomically, write_json
from precision_lab.record.folders import user_path
from precision_lab.record.patterns import patterns_of
from precision_lab.record.run import Run

RECIPE = "fp8_scales"
"""The variant with the chosen scales, the name of the recipe, and the stem of the files."""

WEIGHTS_ONLY, BY_TOKEN = "fp8_weights_only", "fp8_inputs_by_token"
"""Variants with the scales of the weights alone, and with a scale for each token of the inputs instead."""

_TARGET = "precision_lab.techniques.float8_weights.Float8Weights"
_HEADINGS = ("variant", "drift", f"{RECIPE} / variant", f"{RECIPE} drifts no more")


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Reads the weights, chooses their scales and tries them; prints the drift beside others and the paths it left."""
    set_numeric_switches()
    config = settled(config)
    settings = schema.read(scales_schema.Fp8Scales, config)
    goal = Goal(FORMATS["float8_e4m3fn"], settings.margin.bits)
    of_inputs = fp8_inputs.goal_of(settings, command)
    check_variants(settings, RECIPE)
    out = user_path(settings.out) if settings.out else stamped(settings.experiment)
    check_resumed(settings, out)
    covering, cases = _cases(settings, config, of_inputs is not None)
    variants: dict[str, Any] = {str(name): plain(node or {}) for name, node in config.variants.items()}
    only = None if settings.only is None else [*settings.only, RECIPE]

    bench = Bench(spec_for(config, cases[0], out, command, variants={**variants, RECIPE: {}}, only=only))
    sites = walk(bench.components("float32"))
    linears = select(settings.of, sites)
    weights = chosen(pd.DataFrame(weight_ranges(linears)), goal.fmt, goal.margin_bits)
    nodes = nodes_of(weights, sites, bench.layout.default)
    records: dict[str, Any] = {}
    if of_inputs is not None:
        patterns = patterns_of(_addresses(linears), _addresses(sites), bench.layout.default)
        records = {"sites": patterns, "ports": fp8_inputs.PORTS}
        by_token = fp8_inputs.nodes_of(weights, None, sites, bench.layout.default)
        variants |= {WEIGHTS_ONLY: {"technique": nodes}, BY_TOKEN: {"technique": by_token}}
        only = None if only is None else [*only, WEIGHTS_ONLY, BY_TOKEN]
    runs_on = {"variants": BASELINE, "baseline": "baseline", "claims": {}, "only": None, **records}
    covered_by = [spec_for(config, each, out, command, **runs_on) for each in covering]
    tries_on: dict[str, Any] = {"variants": {**variants, RECIPE: {"technique": nodes}}, "only": only, **records}
    for spec in (*covered_by, *(spec_for(config, each, out, command, **tries_on) for each in cases)):
        plan(spec)
    finished = opened(settings.coverage.runs, bench.source.checkpoint.fingerprint)

    console = open_console()
    coverage = scales = None
    if of_inputs is not None:
        covered = finished or {spec.out.name: carried_out(spec, console) for spec in covered_by}
        coverage = fp8_inputs.recorded_inputs(covered, linears)
        scales = chosen_inputs(coverage, of_inputs)
        nodes = fp8_inputs.nodes_of(weights, scales, sites, bench.layout.default)
        tries_on["variants"][RECIPE] = {"technique": nodes}
    specs = [spec_for(config, each, out, command, **tries_on) for each in cases]
    tried = {spec.out.name: carried_out(spec, console) for spec in specs}
    write_config(config, out)
    code = max(judge_and_draw(run, console) for run in tried.values())
    noise = settings.noise if only is None or settings.noise in only else None
    others = [name for name in names_of(tried) if name != RECIPE]
    drift = compared(tried, RECIPE, others, noise)
    remarks = _remarks(weights, goal, bench.source.checkpoint.name)
    inputs = None
    if of_inputs is not None and coverage is not None and scales is not None:
        inputs = fp8_inputs.findings(coverage, scales, of_inputs, tried, RECIPE, linears)
        inputs.write(out)
        remarks += inputs.remarks()
    recipe = write_recipe(out, RECIPE, nodes, remarks)
    write_atomically(out / "weights.parquet", lambda file: weights.to_parquet(file, index=False))
    write_json(out / f"{RECIPE}.json", _about(weights, goal, drift, tried, inputs))
    rows = [(RECIPE, _number(drifts(tried, RECIPE).median(skipna=False)), "", "")]
    rows += [
        (row["against"], _number(row["drift"]), _ratio(row), " ".join(filter(None, (row["verdict"], row["reason"]))))
        for row in drift.to_dict("records")
    ]
    print_table(console, _HEADINGS, rows, f"{RECIPE} over {len(drifts(tried, RECIPE))} cases", folding=(_HEADINGS[-1],))
    for remark in remarks:
        console.print(remark, soft_wrap=True)
    console.print(f"recipe: {recipe}", soft_wrap=True)
    for run in tried.values():
        console.print(f"report: {run.path / 'report.html'}", soft_wrap=True)
    return code


def nodes_of(weights: pd.DataFrame, sites: Sequence[Site], default: str) -> dict[str, dict[str, Any]]:
    """The techniques of the recipe, one for each kind of scale that some weight needs, the coarsest first."""
    every = _addresses(sites)
    nodes = {}
    for kind in KINDS:
        own = weights[weights["scale"] == kind]
        if len(own):
            places = list(own[["component", "site"]].itertuples(index=False, name=None))
            nodes[f"fp8_{kind}"] = {"_target_": _TARGET, "scale": kind, "sites": patterns_of(places, every, default)}
    return nodes


def _remarks(weights: pd.DataFrame, goal: Goal, model: str) -> list[str]:
    """Two lines on what was chosen."""
    count = {kind: int((weights["scale"] == kind).sum()) for kind in KINDS}
    words = {"none": "no scale", "tensor": "one a tensor", "channel": "one an output channel"}
    chosen_words = ", ".join(f"{words[kind]}: {count[kind]}" for kind in KINDS)
    least = {kind: f"{weights[f'normal_bits_{kind}'].min():.1f}" for kind in KINDS}
    saturating = int((weights["overflow_bits"] > 0).sum())
    head = f"e4m3 scales of {len(weights)} weights of {model}, {goal.margin_bits:g} bits above subnormal"
    rest = f"bits above the smallest normal number; with one a tensor {least['tensor']}, a channel {least['channel']}"
    return [
        f"{head}: {chosen_words}.",
        f"Without a scale {saturating} saturate, and the smallest rms of a channel lies {least['none']} {rest}.",
    ]


def _cases(
    settings: scales_schema.Fp8Scales, config: DictConfig, are_inputs_scaled: bool
) -> tuple[list[Cases], list[Cases]]:
    """The sets to choose the scales of inputs from, and those to try on."""
    if are_inputs_scaled:
        return coverage_of(settings, config), heldout_of(settings, config)
    prompts = settings.prompts if settings.holdout.prompts is None else settings.holdout.prompts
    return [], sets_of("holdout", settings.holdout, prompts, config)


def _addresses(sites: Sequence[Site]) -> list[tuple[str, str]]:
    return [(site.component, site.path) for site in sites]


def _about(
    weights: pd.DataFrame,
    goal: Goal,
    drift: pd.DataFrame,
    runs: Mapping[str, Run],
    inputs: fp8_inputs.Findings | None,
) -> dict[str, Any]:
    """What fp8_scales.json says."""
    run = next(iter(runs.values()))
    return {
        "format": goal.fmt.name,
        "margin_bits": goal.margin_bits,
        "checkpoint": asdict(run.manifest.checkpoint),
        "environment": asdict(run.manifest.environment),
        "weights": {kind: int((weights["scale"] == kind).sum()) for kind in KINDS},
        "saturating_unscaled": int((weights["overflow_bits"] > 0).sum()),
        "least_normal_bits": {kind: number(weights[f"normal_bits_{kind}"].min()) for kind in KINDS},
        "drift": number(drifts(runs, RECIPE).median(skipna=False)),
        "variants": {row["against"]: strict(row) for row in drift.to_dict("records")},
        "heldout": case_sets(runs),
        **({} if inputs is None else {"inputs": inputs.about()}),
    }


def _ratio(row: Mapping[Any, Any]) -> str:
    return f"{_number(row['ratio'])} [{_number(row['lo'])}, {_number(row['hi'])}]"


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3g}"
