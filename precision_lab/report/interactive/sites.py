"""What the reader explores on the page of a run: each site over steps and variants, as columns of plain values.

A value is a number, None where nothing was measured, or `LOST` where a value was not finite in at least one
generation. Everything follows from the tables of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.numerics.formats import REDUCED_FORMATS
from precision_lab.record.address import NO_STREAM
from precision_lab.record.layout import Layout, Stream
from precision_lab.report.figures import style
from precision_lab.report.view import View, block_outputs, results
from precision_lab.report.wording import address

LOST = "not finite"
MOST_SITES = 600
"""Rows of the table of sites, beside all block outputs and results."""

MOST_VALUES = 300_000
"""Values of the histories over steps; those of block outputs and results are there in any case."""

MEASURES: Mapping[str, tuple[str, str]] = {
    "amax": ("amax", "largest magnitude, greatest over prompts and seeds"),
    "free": ("accumulated drift", "rel. L2, free-running, median over prompts and seeds; lower is better"),
    "teacher": ("local error", "rel. L2, teacher-forced, median over prompts and seeds; lower is better"),
}
"""Title and meaning of what is measured at a site. Headroom follows from amax."""

_SITE = ["component", "site", "port"]


def explorer(view: View) -> dict[str, Any] | None:
    """The data of the explorer; None for a run that recorded no site."""
    rows = _measured(view)
    if not rows:
        return None
    sites = _ordered(rows, view)
    listed = sites[: int(sites["kept"].sum()) + MOST_SITES]
    steps = sorted({int(step) for own in rows.values() for step in own["step"].dropna().unique()})
    branches = sorted({str(name) for own in rows.values() for name in own["branch"].unique()}, key=_rank(view.layout))
    each = max(1, len(rows) * len(view.variants) * len(branches) * len(steps))
    followed = max(int(sites["kept"].sum()), min(len(listed), MOST_VALUES // each))
    numbers = {key: at for at, key in enumerate(zip(*(listed[name] for name in _SITE), strict=True))}
    looks = style.looks(view.by_colour, view.reference)
    return {
        "variants": [
            {"name": name, "colour": looks[name].colour, "dashes": looks[name].dashes, "shown": name in view.shown}
            for name in view.variants
        ],
        "reference": view.reference,
        "lost": LOST,
        "has_blocks": bool(listed["output"].notna().any()),
        "branches": [{"name": name, "title": _branch(name, view.layout)} for name in branches],
        "steps": steps,
        "streams": [stream.title for stream in _streams(view.layout).values()],
        "formats": {fmt.name: float(fmt.max) for fmt in REDUCED_FORMATS},
        "measures": {name: {"title": MEASURES[name][0], "meaning": MEASURES[name][1]} for name in rows},
        "sites": {
            "address": [address(view.layout, *key) for key in numbers],
            "component": listed["component"].tolist(),
            "port": listed["port"].tolist(),
            "stream": ["" if stream == NO_STREAM else stream for stream in listed["stream"]],
            "block": [None if pd.isna(block) else int(block) for block in listed["block"]],
            "output": [None if pd.isna(at) else int(at) for at in listed["output"]],
        },
        "summary": {name: _summary(own, numbers, view.variants) for name, own in rows.items()},
        "lost_at": _lost_at(rows["amax"], numbers, view.variants) if "amax" in rows else [],
        "history": {
            name: _history(own, name, dict(list(numbers.items())[:followed]), view.variants, branches, steps)
            for name, own in rows.items()
        },
        "rule": _rule(len(sites), len(listed), followed),
    }


def _measured(view: View) -> dict[str, pd.DataFrame]:
    """The rows of each measure with the columns value and lost."""
    found = {}
    if view.activations is not None:
        found["amax"] = view.activations.assign(value=view.activations["amax"])
    if view.against_reference is not None:
        for mode in ("free", "teacher"):
            rows = view.against_reference
            rows = rows[rows["mode"] == mode]
            if len(rows):
                found[mode] = rows.assign(value=rows["rel_l2"])
    return found


def _streams(layout: Layout) -> Mapping[str, Stream]:
    """The streams whose block outputs are drawn over the blocks."""
    return layout.streams or {"": Stream("block outputs")}


def _rank(layout: Layout) -> Any:
    order = list(layout.branches)
    return lambda name: (order.index(name) if name in order else -1, name)


def _branch(name: str, layout: Layout) -> str:
    meaning = layout.branches.get(name, "")
    return f"{name} ({meaning})" if meaning else name or "outside of branches"


def _ordered(rows: Mapping[str, pd.DataFrame], view: View) -> pd.DataFrame:
    """One row a site: those kept in any case in the order of execution, then the others by their largest change.

    output: the index of the stream that a block's output carries, else NaN.
    """
    every = pd.concat([own[[*_SITE, "stream", "block"]] for own in rows.values()]).drop_duplicates(_SITE)
    layout = view.layout
    if layout.streams:
        outputs = [block_outputs(every.assign(step=0), layout, stream) for stream in layout.streams]
    else:
        inside = every[(every["component"] == layout.default) & (every["port"] == "out") & every["block"].notna()]
        blocks = [layout.is_block(layout.default, site) for site in inside["site"]]
        outputs = [inside[np.array(blocks, dtype=bool)]]
    every = every.assign(output=np.nan)
    for at, own in enumerate(outputs):
        every.loc[_same(every, own), "output"] = at
    every["kept"] = every["output"].notna() | _same(every, results(every, layout))
    every["change"] = _change(rows.get("amax"), every, view.reference)
    kept = every[every["kept"]].sort_values(["output", "block", "site"], kind="stable", na_position="last")
    others = every[~every["kept"]].sort_values(["change", *_SITE], ascending=[False, True, True, True], kind="stable")
    return pd.concat([kept, others], ignore_index=True)


def _same(every: pd.DataFrame, own: pd.DataFrame) -> pd.Series:
    """Whether each row of `every` is the site of one of `own`."""
    wanted = pd.MultiIndex.from_frame(own[_SITE])
    return pd.Series(pd.MultiIndex.from_frame(every[_SITE]).isin(wanted), index=every.index)


def _change(rows: pd.DataFrame | None, sites: pd.DataFrame, reference: str) -> pd.Series:
    """|log2| of the greatest amax of a variant over that of the reference, the largest over variants; infinite where a
    variant is not finite, 0 where it cannot be told."""
    if rows is None:
        return pd.Series(0.0, index=sites.index)
    table = rows.pivot_table(index=_SITE, columns="variant", values="value", aggfunc="max", dropna=False)
    lost = rows.groupby(_SITE)["nonfinite"].any()
    logs = table.where(table > 0).map(np.log2)
    base = logs[reference] if reference in logs else logs.median(axis=1)
    change = logs.sub(base, axis=0).abs().max(axis=1).fillna(0.0)
    change = change.mask(lost.reindex(change.index).fillna(False).astype(bool), np.inf)
    found = change.reindex(pd.MultiIndex.from_frame(sites[_SITE])).fillna(0.0)
    return pd.Series(found.to_numpy(), index=sites.index)


def _summary(rows: pd.DataFrame, numbers: Mapping[Any, int], variants: Sequence[str]) -> list[list[float | None]]:
    """The greatest finite value of each site over steps, branches, prompts and seeds: by variant, then by site."""
    found: list[list[float | None]] = [[None] * len(numbers) for _ in variants]
    at = {name: index for index, name in enumerate(variants)}
    greatest = rows.groupby(["variant", *_SITE], sort=False)["value"].max().reset_index()
    for variant, component, name, port, value in greatest.itertuples(index=False):
        if (site := numbers.get((component, name, port))) is not None and pd.notna(value):
            found[at[variant]][site] = _short(value)
    return found


def _lost_at(rows: pd.DataFrame, numbers: Mapping[Any, int], variants: Sequence[str]) -> list[dict[str, int | None]]:
    """By variant, the first step of each site that is not finite; None for one outside of steps."""
    found: list[dict[str, int | None]] = [{} for _ in variants]
    at = {name: index for index, name in enumerate(variants)}
    first = rows[rows["nonfinite"]].groupby(["variant", *_SITE], sort=False)["step"].min().reset_index()
    for variant, component, name, port, step in first.itertuples(index=False):
        if (site := numbers.get((component, name, port))) is not None:
            found[at[variant]][str(site)] = None if pd.isna(step) else int(step)
    return found


def _history(
    rows: pd.DataFrame,
    measure: str,
    numbers: Mapping[Any, int],
    variants: Sequence[str],
    branches: Sequence[str],
    steps: Sequence[int],
) -> list[list[dict[str, list[float | str | None]]]]:
    """By variant, branch and number of a site: its values over `steps`; only of sites that were measured in a step."""
    found: list[list[dict[str, list[float | str | None]]]] = [[{} for _ in branches] for _ in variants]
    variant_at = {name: index for index, name in enumerate(variants)}
    branch_at = {name: index for index, name in enumerate(branches)}
    step_at = {step: index for index, step in enumerate(steps)}
    how = "max" if measure == "amax" else "median"
    key = ["variant", "branch", *_SITE, "step"]  # rows outside of steps have none, and belong to no group
    cells = rows.groupby(key, sort=False).agg(value=("value", how), lost=("nonfinite", "any")).reset_index()
    for row in zip(*(cells[name].tolist() for name in (*key, "value", "lost")), strict=True):
        variant, branch, component, site, port, step, value, lost = row
        number = numbers.get((component, site, port))
        if number is None:
            continue
        series = found[variant_at[variant]][branch_at[branch]].setdefault(str(number), [None] * len(steps))
        series[step_at[int(step)]] = LOST if lost else _short(value)
    return found


def _short(value: float) -> float | None:
    """Four significant digits, which is what a reader can see."""
    return None if value != value else float(f"{value:.4g}")


def _rule(of: int, listed: int, followed: int) -> str:
    """How the sites were chosen, for the page."""
    rule = (
        "block outputs and results first, then the sites whose greatest amax differs most from the reference's, those "
        "that are not finite before all others"
    )
    if listed == of == followed:
        return f"All {of} recorded sites, with their values over the steps."
    rest = "" if followed == listed else f" Values over the steps are here for the first {followed}."
    return f"{listed} of {of} recorded sites: {rule}.{rest} The tables of the run hold all of them."
