"""Pinned cases: the fp32 reference of a few generations, compared array by array with the sketches of a baseline.

On one back end the same code computes the same numbers, up to the order of sums: the deviation of an array, estimated
from its sketch (`precision_lab.numerics.sketch`), must stay within a tolerance or a multiple of the noise floor stored
for its site. Sites inside blocks are kept for the main branch only: the other branches run the same modules, and a
deviation of theirs shows where the branches are joined.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis.gate.rows import ADDRESS, address_of, address_record, located, steps, violations_of
from precision_lab.analysis.gate.violation import Findings, Violation
from precision_lab.errors import InputError
from precision_lab.numerics.sketch import SKETCH_COLUMNS, deviation
from precision_lab.record.layout import Layout

TOLERANCES = {"cpu": 1e-4}
"""The relative deviation that is allowed everywhere, by back end. Honest refactors deviate by up to 7.2e-5 on a CPU
(experiments/LOG.md), where the noise floor allows more than this."""

UNMEASURED_TOLERANCE = 1e-3
"""That of other back ends: far above the rounding of fp32, far below most mistakes."""

NOISE_FACTOR = 4.0
"""How many times the stored noise floor is allowed: it is one sample, and eight projections estimate it within two."""

REFERENCE, EQUIVALENT = "reference", "equivalent"
_UNIT = 1e-5
"""The unit of stored projections, as a share of the array's norm: rounding to it moves a deviation by 3e-6."""
_SITE = ("component", "site", "port")
_MOMENT = ("case", "branch", "step")
_COLUMNS = (*ADDRESS, *_MOMENT, "order", "dtype", "shape", "numel", "num_nonfinite", "rms", *SKETCH_COLUMNS)


def tolerance_of(backend: str) -> float:
    """The relative deviation that is allowed on a back end."""
    return TOLERANCES.get(backend, UNMEASURED_TOLERANCE)


def learn(table: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """The part of the table `sketches` that a baseline keeps: rows of the reference, with the noise floor of each site.

    The noise floor, `noise`, is the largest deviation of the equivalent run's arrays at the site, 0 without such a run.
    Raises InputError if an array of the reference is not finite.
    """
    rows = _prepared(table, layout)
    kept = rows[rows["variant"] == REFERENCE]
    bad = kept[~np.isfinite(kept[["rms", *SKETCH_COLUMNS]].to_numpy(float)).all(axis=1)]
    if len(bad):
        row = bad.iloc[0]
        address = layout.address(row["component"], row["site"], row["port"])
        raise InputError(
            f"The pinned case {row['case']} is not finite at {address}. A baseline is learned from a model that works"
        )
    equivalent = rows[rows["variant"] == EQUIVALENT]
    both = kept.merge(equivalent, on=[*_SITE, *_MOMENT], suffixes=("", "_equivalent"))
    both["noise"] = _deviation(both, "_equivalent", "")
    noise = both.groupby(list(_SITE))["noise"].agg(lambda values: values.max(skipna=False)).rename("noise")
    return kept.join(noise, on=list(_SITE)).fillna({"noise": 0.0}).reset_index(drop=True)


def judge(learned: pd.DataFrame, table: pd.DataFrame, tolerance: float, factor: float, layout: Layout) -> Findings:
    """Where the table `sketches` differs from `learned`: deviations, dtypes, shapes, arrays gone and new ones.

    An array may deviate by `tolerance`, or by `factor` times the noise floor of its site. NaN is never within it.
    """
    rows = _prepared(table, layout)
    rows = rows[rows["variant"] == REFERENCE]
    both = rows.merge(learned, on=[*_SITE, *_MOMENT], how="outer", suffixes=("", "_learned"), indicator=True)
    both = both.sort_values("order", kind="stable")
    known = both[both["_merge"] == "both"]
    findings = Findings(checks=Counter(sketches=len(known), sites=len(learned), dtypes=len(known)))
    findings.violations += _gone_and_new(both, layout)
    _add(findings, known[known["dtype"] != known["dtype_learned"]], "dtypes", "dtype", layout)
    same_shape = known["shape"] == known["shape_learned"]
    _add(findings, known[~same_shape], "sketches", "shape", layout)
    _add(findings, known[known["num_nonfinite"] > 0], "nonfinite", "num_nonfinite", layout)
    comparable = known[same_shape & (known["num_nonfinite"] == 0)]
    findings.violations += _deviating(comparable, tolerance, factor, layout)
    findings.checks["nonfinite"] += len(known)
    return findings


def moved(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Sites that two tables of `learn` share, in order of execution, with the largest `rel_l2` of their arrays."""
    both = after.merge(before, on=[*_SITE, *_MOMENT], suffixes=("", "_before"))
    both["rel_l2"] = np.where(both["shape"] == both["shape_before"], _deviation(both, "", "_before"), math.inf)
    grouped = both.groupby(["variant", *_SITE], sort=False)
    sites = grouped.agg(order=("order", "min"), rel_l2=("rel_l2", "max")).reset_index()
    return sites.sort_values("order", kind="stable", ignore_index=True)


def _deviating(rows: pd.DataFrame, tolerance: float, factor: float, layout: Layout) -> list[Violation]:
    found = _deviation(rows, "", "_learned")
    limit = np.maximum(tolerance, factor * rows["noise"].to_numpy(float))
    outside = ~(found <= limit)
    with np.errstate(divide="ignore", invalid="ignore"):
        beyond = np.log2(found / limit)
    bad = rows[outside].assign(
        expected=[f"within {value:.2g}" for value in limit[outside]],
        got=[f"{value:.3g}" if math.isfinite(value) else "undefined" for value in found[outside]],
        magnitude=np.where(np.isfinite(beyond), beyond, math.inf)[outside],
    )
    return violations_of(bad, "sketches", "rel_l2", layout, pinned=True)


def _deviation(rows: pd.DataFrame, of: str, against: str) -> np.ndarray:
    """rel_l2 as the sketches estimate it, and at least what follows from the norms: | |x| - |y| | <= |x - y|."""
    columns = [[f"{name}{suffix}" for name in SKETCH_COLUMNS] for suffix in (of, against)]
    rms, reference = rows[f"rms{of}"].to_numpy(float), rows[f"rms{against}"].to_numpy(float)
    sketched = deviation(rows[columns[0]], rows[columns[1]], reference, rows[f"numel{against}"])
    with np.errstate(divide="ignore", invalid="ignore"):
        by_norm = np.where(rms == reference, 0.0, np.abs(rms / reference - 1))
    return np.maximum(sketched, by_norm)


def _gone_and_new(both: pd.DataFrame, layout: Layout) -> list[Violation]:
    """Arrays that one side lacks: the site, where nothing of it is left, or one of its moments."""
    found = []
    for side, metric in (("right_only", "site gone"), ("left_only", "new site")):
        rows = both[both["_merge"] == side].assign(magnitude=math.inf)
        gone = side == "right_only"
        if gone:
            rows = rows.assign(variant=REFERENCE, order=rows["order_learned"], got="nothing")
            rows["expected"] = rows["dtype_learned"] + " " + rows["shape_learned"]
        else:
            rows = rows.assign(expected="no such array", got=rows["dtype"] + " " + rows["shape"])
        found += violations_of(rows.sort_values("order", kind="stable"), "sites", metric, layout, pinned=True)
    return found


def _add(findings: Findings, bad: pd.DataFrame, kind: str, column: str, layout: Layout) -> None:
    learned = bad[f"{column}_learned"].astype(str)
    described = bad.assign(expected=learned, got=bad[column].astype(str), magnitude=math.inf)
    findings.violations += violations_of(described, kind, column, layout, pinned=True)


def to_records(learned: pd.DataFrame, component: str) -> list[dict[str, Any]]:
    """Strict JSON, one record a site, without the component `component` and the port `out`.

    `arrays` holds one list an array: case, branch, step, order, shape, rms, and the eight projections in units of 1e-5
    of the array's norm.
    """
    scale = _UNIT * learned["rms"].to_numpy(float) * np.sqrt(learned["numel"].to_numpy(float))
    projections = learned[list(SKETCH_COLUMNS)].to_numpy(float) / np.where(scale > 0, scale, 1.0)[:, None]
    arrays = [learned[name].tolist() for name in (*_MOMENT, "order", "shape")]
    arrays.append([float(f"{rms:.6g}") for rms in learned["rms"]])
    sites = zip(*(learned[name].tolist() for name in (*_SITE, "dtype", "noise")), strict=True)
    records: dict[tuple[str, ...], dict[str, Any]] = {}
    for (*address, dtype, noise), array, values in zip(
        sites, zip(*arrays, strict=True), np.rint(projections).astype(int).tolist(), strict=True
    ):
        record = records.get(tuple(address))
        if record is None:
            named = address_record(dict(zip(_SITE, address, strict=True)), component, _SITE)
            record = records[tuple(address)] = {**named, "dtype": dtype}
            if noise > 0:
                record["noise"] = float(f"{noise:.3g}")
            record["arrays"] = []
        record["arrays"].append([*array, *values])
    return list(records.values())


def from_records(records: Sequence[Mapping[str, Any]], component: str) -> pd.DataFrame:
    """The table that `to_records` wrote, up to rounding. Raises InputError for records of another form."""
    rows = []
    for record in records:
        try:
            site = address_of(record, component, _SITE) | {"dtype": str(record["dtype"])}
            for case, branch, step, order, shape, rms, *projections in record["arrays"]:
                numel = math.prod(int(n) for n in shape.split("x")) if shape else 1
                scale = _UNIT * rms * math.sqrt(numel)
                row = {"variant": REFERENCE, **site, "case": case, "branch": branch, "step": step, "order": int(order)}
                row |= {"shape": shape, "numel": numel, "num_nonfinite": 0, "rms": float(rms)}
                row |= {name: scale * p for name, p in zip(SKETCH_COLUMNS, projections, strict=True)}
                rows.append({**row, "noise": float(record.get("noise", 0.0))})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"The sketches {str(record)[:100]} cannot be read. Learn the baseline again") from error
    learned = pd.DataFrame(rows, columns=[*_COLUMNS, "noise"])
    return learned.assign(step=steps(learned["step"], learned.index), branch=learned["branch"].astype(object))


def _prepared(table: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """The rows that are compared, in order of execution. A table without variants is one of the reference."""
    rows = located(table)
    if "variant" not in table:
        rows["variant"] = REFERENCE
    rows["case"] = table["case"].astype(object).to_numpy()
    for name in ("dtype", "shape"):
        rows[name] = table[name].astype(object).to_numpy()
    for name in ("numel", "num_nonfinite"):
        rows[name] = table[name].to_numpy(np.int64)
    for name in ("rms", *SKETCH_COLUMNS):
        rows[name] = table[name].to_numpy(float, na_value=np.nan)
    inside_block = table["block"].notna().to_numpy(bool)
    kept = ~(inside_block & rows["branch"].isin(layout.other_branches).to_numpy(bool))
    return rows[kept].sort_values(["case", "order"], kind="stable", ignore_index=True)
