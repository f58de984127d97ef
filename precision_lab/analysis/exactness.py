"""Equality to the bit between two runs, and what of their configuration explains that there is none.

Statistics of arrays may agree although values moved. Digests of the outcomes of generations cannot, and sketches of
pinned cases hardly can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from precision_lab.analysis.alike import MISSING, Difference, shared_cases
from precision_lab.numerics.sketch import SKETCH_COLUMNS, deviation
from precision_lab.record.run import Run

_CONFIGURED = ("checkpoint.", "case.", "model.")
_NO_CONFIGURATION = ("checkpoint.path", "checkpoint.resources", "checkpoint.notes", "checkpoint.ignored")
_FOLLOW = ("linear_weights.", "weights.", "choices.", "reference", "expect")
"""Entries of a variant that follow from others, or decide no number of it."""

_SKETCHED = ["case", "branch", "step", "component", "site", "port"]


@dataclass(frozen=True)
class Outcomes:
    """How many outcomes of a variant have equal digests. first: prompt and seed of the first that differs."""

    compared: int
    equal: int
    first: tuple[int, int] | None


@dataclass(frozen=True)
class Sketched:
    """How many sketches of pinned cases are equal. first: the first that differs in order of execution (site, case,
    branch, step, rel_l2 as the sketches estimate it, before: the last equal one), None if all are equal.
    """

    compared: int
    equal: int
    first: Mapping[str, Any] | None


def configuration(differences: Sequence[Difference], variant: str) -> list[Difference]:
    """What of the configuration decides the numbers of a variant and differs: dtype, techniques, settings, weights."""
    own = f"variants.{variant}."
    found: list[Difference] = []
    for each in differences:
        if each.what.startswith(own):
            name = each.what.removeprefix(own)
            if not name.startswith(_FOLLOW):
                found.append(Difference(name, each.first, each.second))
        elif each.what.startswith(_CONFIGURED) and not each.what.startswith(_NO_CONFIGURATION):
            found.append(each)
    if any(each.what == "techniques" for each in found):  # they name the techniques that one run has alone
        found = [e for e in found if not (e.what.startswith("technique.") and MISSING in (e.first, e.second))]
    return found


def environment(differences: Sequence[Difference]) -> list[Difference]:
    """What of machine and software differs."""
    prefix = "environment."
    found = [each for each in differences if each.what.startswith(prefix)]
    return [Difference(each.what.removeprefix(prefix), each.first, each.second) for each in found]


def outcomes(first: Run, second: Run, variant: str) -> Outcomes:
    """The outcomes of the same prompt, seed and settings, by their digests."""
    known = []
    for run in (first, second):
        table = run.generations
        columns = ["prompt_id", "seed", "what", "digest"]
        table = table[table["variant"] == variant].reindex(columns=columns).dropna(subset=["digest"])
        rows = table.itertuples(index=False, name=None)
        known.append({(int(prompt), int(seed)): (str(what), str(digest)) for prompt, seed, what, digest in rows})
    cases = shared_cases(first, second, variant, variant)
    pairs = {own: (known[0].get(own), known[1].get(theirs)) for own, theirs in cases.items()}
    compared = {case: one == other for case, (one, other) in pairs.items() if one and other and one[0] == other[0]}
    different = [case for case, is_equal in compared.items() if not is_equal]
    return Outcomes(len(compared), len(compared) - len(different), different[0] if different else None)


def sketched(first: Run, second: Run) -> Sketched | None:
    """The sketches of the pinned cases of two runs; None unless both have recorded the same cases."""
    one, other = first.manifest.pinned, second.manifest.pinned
    if one is None or other is None or one.fingerprint != other.fingerprint:
        return None
    wanted = [*_SKETCHED, "order", "dtype", "shape", "numel", "rms", *SKETCH_COLUMNS]
    tables = []
    for run in (first, second):
        table = run.sketches
        table = table[table["variant"] == "reference"] if "variant" in table else table
        tables.append(table.reindex(columns=wanted))
    both = tables[0].merge(tables[1], on=_SKETCHED, suffixes=("", "_other"))
    both = both.sort_values(["case", "order"], kind="stable", ignore_index=True)
    if not len(both):
        return None
    equal = (both["shape"] == both["shape_other"]) & (both["dtype"] == both["dtype_other"])
    for name in ("rms", *SKETCH_COLUMNS):
        values, others = both[name].astype(float), both[f"{name}_other"].astype(float)
        equal &= (values == others) | (values.isna() & others.isna())
    is_equal = equal.fillna(False).to_numpy(bool)
    if is_equal.all():
        return Sketched(len(both), len(both), None)
    place = both.groupby("case", sort=False).cumcount().to_numpy()
    at = min((i for i in range(len(both)) if not is_equal[i]), key=lambda i: (place[i], i))
    return Sketched(len(both), int(is_equal.sum()), _described(both, at, is_equal, first))


def _described(both: pd.DataFrame, at: int, is_equal: Any, run: Run) -> Mapping[str, Any]:
    row = both.iloc[at]
    earlier = [i for i in range(at) if is_equal[i] and both["case"].iloc[i] == row["case"]]
    before = both.iloc[earlier[-1]] if earlier else None
    names = [[f"{name}{side}" for name in SKETCH_COLUMNS] for side in ("_other", "")]
    projections = [both.loc[at, columns].to_numpy(float) for columns in names]
    size = float(deviation(projections[0], projections[1], float(row["rms"]), float(row["numel"])))
    return {
        "site": run.layout.address(row["component"], row["site"], row["port"]),
        "case": str(row["case"]),
        "branch": None if pd.isna(row["branch"]) else str(row["branch"]),
        "step": None if pd.isna(row["step"]) else int(row["step"]),
        "rel_l2": size if math.isfinite(size) else None,
        "before": "" if before is None else run.layout.address(before["component"], before["site"], before["port"]),
    }
