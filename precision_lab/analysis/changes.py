"""What changed first between two runs: arrays of the same variant, prompt, seed and moment, in order of execution.

Runs of one machine, commit, software and configuration are expected to agree bit for bit, so that any difference
counts. Otherwise an array may differ by what rounding explains: four times the drift from fp32 that either run had
recorded up to there, or four units of rounding of its dtype where that is more; for fp32 the tolerance of the gate.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.analysis.alike import shared_cases
from precision_lab.analysis.gate.sketches import tolerance_of
from precision_lab.analysis.pairing import Pairing, Place, places_of
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.rounding_share import MARGIN, unit
from precision_lab.record.layout import Layout
from precision_lab.record.run import Run

_CASE = ("variant", "prompt_id", "seed", "branch", "step")
_PLACE = ("component", "site", "port")
_KEY = [*_CASE, *_PLACE]
_STATISTICS = ("amax", "amin_nonzero", "min", "max", "mean", "rms")
_COUNTS = ("num_nan", "num_inf", "num_zero")
_GENERATION = ["variant", "prompt_id", "seed"]


@dataclass(frozen=True)
class Change:
    """The first array of a variant that differs, and the first beyond what is allowed.

    compared, equal, beyond: numbers of arrays. first, first_beyond: None if there is none; each has site (an address),
    prompt_id, seed, branch, step, what (in words), size (in units of rounding of the dtype), allowed, and before (the
    address of the last array that is equal).
    """

    variant: str
    compared: int
    equal: int
    beyond: int
    first: Mapping[str, Any] | None
    first_beyond: Mapping[str, Any] | None


def expects_equality(first: Run, second: Run) -> bool:
    """Whether the two runs come from one machine, commit and software, so that equal work gives equal bits."""
    one, other = first.manifest.environment, second.manifest.environment
    same = one == other and one.commit is not None and not one.dirty
    return same and first.manifest.checkpoint.fingerprint == second.manifest.checkpoint.fingerprint


def compared(first: Run, second: Run, pairing: Pairing, configured: Collection[str] = ()) -> pd.DataFrame:
    """One row for each array of the same variant, case and moment, in order of execution.

    size: the larger relative difference of amax and rms, infinite for another dtype, shape or number of non-finite
    values; units: in units of rounding of the coarser dtype; allowed: relative; equal: whether every number recorded of
    both is the same. configured: variants whose configuration differs, so that equal bits are not expected. Empty for
    runs without a case in common.
    """
    cases = shared_cases(first, second)
    wanted = [*_KEY, "order", "dtype", "shape", *_STATISTICS, *_COUNTS]
    if not cases or not pairing.pairs:
        return pd.DataFrame(columns=[*wanted, "size", "units", "allowed", "equal", "what"])
    # a row without a dtype is no observed array: a probe that measures calls has added it
    ours, theirs = (run.activations.reindex(columns=wanted).dropna(subset=["dtype"]) for run in (first, second))
    back = {there: here for here, there in pairing.pairs.items()}
    theirs = _renamed(theirs, back, {own: case[0] for case, (own, _) in cases.items()})
    both = ours.merge(theirs, on=_KEY, suffixes=("", "_other"))
    early = both["component"].isin(first.layout.before) & both["step"].isna()
    both = both.assign(late=~early).sort_values([*_GENERATION, "late", "order"], kind="stable", ignore_index=True)
    return _judged(both, [first, second], configured)


def _renamed(rows: pd.DataFrame, back: Mapping[Place, Place], prompts: Mapping[int, int]) -> pd.DataFrame:
    """Rows of the other run with the names and the prompt numbers that the base has for them."""
    places = list(zip(*(rows[name] for name in _PLACE), strict=True))
    own = [back.get(place) for place in places]
    kept = np.array([place is not None for place in own], dtype=bool) & rows["prompt_id"].isin(list(prompts)).to_numpy()
    rows = rows[kept]
    named = [place for place, keep in zip(own, kept, strict=True) if keep and place is not None]
    for at, name in enumerate(_PLACE):
        rows = rows.assign(**{name: pd.array([place[at] for place in named], dtype="string")})
    return rows.assign(prompt_id=rows["prompt_id"].map(prompts).astype("Int64"))


def _judged(both: pd.DataFrame, runs: list[Run], configured: Collection[str]) -> pd.DataFrame:
    size = np.zeros(len(both))
    for name in ("amax", "rms"):
        one, other = (both[column].to_numpy(float, na_value=math.nan) for column in (name, f"{name}_other"))
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.abs(other - one) / np.maximum(np.abs(one), np.abs(other))
        size = np.fmax(size, np.where(one == other, 0.0, relative))
    bad = [sum(both[f"{name}{side}"].fillna(0) for name in ("num_nan", "num_inf")) for side in ("", "_other")]
    # a typed comparison of text is <NA> for missing values
    texts = {name: (both[name] != both[f"{name}_other"]).fillna(True).to_numpy(bool) for name in ("dtype", "shape")}
    lost = np.asarray(bad[0] != bad[1], dtype=bool)
    equal = ~(texts["dtype"] | texts["shape"])
    for name in (*_STATISTICS, *_COUNTS):
        one, other = (both[column].to_numpy(float, na_value=math.nan) for column in (name, f"{name}_other"))
        equal &= (one == other) | (np.isnan(one) & np.isnan(other))
    of_dtype = {name: unit(name) for name in FORMATS}
    units = [both[name].map(of_dtype).to_numpy(float, na_value=math.nan) for name in ("dtype", "dtype_other")]
    rounding = np.fmax(*units)
    allowed = _allowed(both, runs, rounding)
    if expects_equality(*runs):
        allowed = np.where(both["variant"].isin(list(configured)).to_numpy(bool), allowed, 0.0)
    what = np.where(equal, "", np.where(size > 0, "range", "other values within the range"))
    what = np.where(lost, "non-finite values", what)
    what = np.where(texts["shape"], "shape", what)
    changed = both["dtype"].astype(str) + " to " + both["dtype_other"].astype(str)
    what = np.where(texts["dtype"], changed.to_numpy(str), what)
    hard = lost | texts["shape"]
    size = np.where(hard, math.inf, size)
    return both.assign(size=size, units=size / rounding, allowed=allowed, equal=equal, what=what)


def _allowed(both: pd.DataFrame, runs: list[Run], rounding: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The relative difference that rounding explains at each row, which never falls within a generation."""
    tolerance = max(tolerance_of(run.manifest.environment.backend) for run in runs)
    limit = np.where(
        both["dtype"].to_numpy(str) == "float32", np.maximum(tolerance, MARGIN * rounding), MARGIN * rounding
    )
    for run in runs:
        drift = run.drift[run.drift["mode"] == "free"].reindex(columns=[*_KEY, "rel_l2"]).drop_duplicates(_KEY)
        found = both[_KEY].merge(drift, on=_KEY, how="left")["rel_l2"].to_numpy(float, na_value=math.nan)
        limit = np.fmax(limit, MARGIN * found)
    grouped = pd.Series(limit).groupby([both[name].to_numpy() for name in _GENERATION])
    return np.asarray(grouped.cummax(), dtype=np.float64)


def first_changes(rows: pd.DataFrame, layout: Layout) -> list[Change]:
    """One entry for each variant, in the order of the rows. rows: of `compared`."""
    found = []
    for variant, group in rows.groupby("variant", sort=False):
        different = ~group["equal"].to_numpy(bool)
        beyond = different & ~(group["size"].to_numpy(float) <= group["allowed"].to_numpy(float))
        firsts = [_described(group, mask, different, layout) for mask in (different, beyond)]
        counts = (len(group), int((~different).sum()), int(beyond.sum()))
        found.append(Change(str(variant), *counts, *firsts))
    return found


def _described(
    group: pd.DataFrame, mask: npt.NDArray[np.bool_], different: npt.NDArray[np.bool_], layout: Layout
) -> Mapping[str, Any] | None:
    """The first row of the mask over all generations: the one with the fewest equal arrays before it in its own."""
    if not mask.any():
        return None
    place = group.groupby(_GENERATION, sort=False).cumcount().to_numpy()
    at = min(np.flatnonzero(mask), key=lambda index: (place[index], index))
    row = group.iloc[at]
    start = at - place[at]
    equal = [index for index in range(start, at) if not different[index]]
    before = group.iloc[equal[-1]] if equal else None
    size, units, allowed = float(row["size"]), float(row["units"]), float(row["allowed"])
    return {
        "site": layout.address(row["component"], row["site"], row["port"]),
        **{name: None if pd.isna(row[name]) else int(row[name]) for name in ("prompt_id", "seed", "step")},
        "branch": None if pd.isna(row["branch"]) else str(row["branch"]),
        "what": str(row["what"]),
        "relative": size if math.isfinite(size) else None,
        "units": units if math.isfinite(units) else None,
        "allowed": allowed,
        "before": "" if before is None else layout.address(before["component"], before["site"], before["port"]),
    }


def peaks(first: Run, second: Run, pairing: Pairing) -> pd.DataFrame:
    """The largest amax of each array of a shared variant over all cases, steps and branches, in order of execution.

    variant, component, site, port (of the base), block, stream, other (address), amax, amax_other, log2_ratio (NaN
    where either is undefined or zero), dtype, dtype_other, nonfinite_change (arrays).
    """
    tables = []
    for run in (first, second):
        table = run.activations
        wanted = [*_PLACE, "variant", "order", "dtype", "amax", "num_nan", "num_inf"]
        table = table.reindex(columns=wanted)
        table = table.assign(lost=((table["num_nan"].fillna(0) + table["num_inf"].fillna(0)) > 0).astype(int))
        keys = ["variant", *_PLACE]
        told = {
            "order": ("order", "min"),
            "dtype": ("dtype", "first"),
            "amax": ("amax", "max"),
            "lost": ("lost", "sum"),
        }
        tables.append(table.groupby(keys, sort=False).agg(**told).reset_index())
    there = pd.DataFrame(
        [(*here, *other, second.layout.address(*other)) for here, other in pairing.pairs.items()],
        columns=[*_PLACE, *(f"{name}_other" for name in _PLACE), "other"],
    )
    both = tables[0].merge(there, on=list(_PLACE))
    theirs = tables[1].rename(columns={name: f"{name}_other" for name in (*_PLACE, "order", "dtype", "amax", "lost")})
    both = both.merge(theirs, on=["variant", *(f"{name}_other" for name in _PLACE)])
    one, other = (both[name].to_numpy(float, na_value=math.nan) for name in ("amax", "amax_other"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(one == other, 0.0, np.log2(other / one))
    layout = first.layout
    both = both.assign(
        log2_ratio=np.where(np.isfinite(ratio), ratio, np.nan),
        nonfinite_change=both["lost_other"] - both["lost"],
        base=[layout.address(*row) for row in both[list(_PLACE)].itertuples(index=False, name=None)],
        block=pd.array(
            [layout.block_of(c, s) for c, s in zip(both["component"], both["site"], strict=True)], dtype="Int64"
        ),
        stream=[layout.stream_of(c, s) for c, s in zip(both["component"], both["site"], strict=True)],
    )
    kept = ["variant", "base", "other", "component", "block", "stream", "dtype", "dtype_other", "amax", "amax_other"]
    both = both.sort_values(["variant", "order"], kind="stable", ignore_index=True)
    return both[[*kept, "log2_ratio", "nonfinite_change", "order"]]


def places(run: Run) -> list[Place]:
    """The arrays whose ranges a run has recorded, in order of execution."""
    return places_of(run.activations)
