"""`python -m experiments.formats.table RUN FILE`: sizes, drifts and complaint metrics of each variant, as JSON.

RUN: a folder of a run of +exp=formats or formats_256, whose checkpoint is still where it was. Summaries have medians
alone; this reads the tables, for the interval over prompts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from precision_lab.analysis.measures import final_drift
from precision_lab.analysis.pictures import measure_medians
from precision_lab.analysis.ratios import over_units
from precision_lab.model.folder import local
from precision_lab.model.weights import WeightFiles
from precision_lab.numerics.pareto import nondominated
from precision_lab.record.files import write_json
from precision_lab.record.glob import named_sites
from precision_lab.record.manifest import VariantEntry
from precision_lab.record.run import Run

K_QUANTS = ("q4_k", "q5_k", "q6_k")
SUPER_BLOCK = 256
PICTURES = ("flip", "flat_grain", "grid_8", "grid_16", "grid_32")
_WIDE = 16


def rows(run: Run) -> dict[str, dict[str, Any]]:
    """By variant without a twin's, the columns of the page.

    - gigabytes: of the denoiser with scales, in 1e9 bytes; bits: of all its parameters.
    - share: of the weights of its linears, those stored in the format; own_bits: what one of these takes with its
      scales. Null unless every rewritten linear is of `sites.block_linears`, as in `formats`.
    - drift, lo, hi: rel. L2 of the latents after the last step, the geometric mean over prompts with its 95 % interval.
    - pictures: medians over cases, null where there is none.
    - on_front: whether no other variant without narrow inputs that covers as many weights is both smaller and nearer.
    """
    linears = _linears(run)
    names = [name for name in run.manifest.variants if not name.endswith("_twin") and name != run.reference]
    found = {name: _row(run, name, linears) for name in names}
    compared = [name for name, row in found.items() if _is_compared(name, row, found)]
    points = [(found[name]["own_bits"] or found[name]["bits"], found[name]["drift"]) for name in compared]
    front = dict(zip(compared, nondominated(np.array(points, dtype=float)), strict=True))
    return {name: row | {"on_front": bool(front.get(name, False))} for name, row in found.items() if row["drift"]}


def _is_compared(name: str, row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> bool:
    largest = max((other["share"] or 0) for other in rows.values())
    is_whole = row["share"] is None or row["share"] == largest
    return bool(row["drift"]) and is_whole and not name.endswith("_inputs") and name != "bfloat16"


def _row(run: Run, name: str, linears: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    entry = run.manifest.variants[name]
    stored = entry.stored(run.layout.default)
    if stored is None:
        raise ValueError(f"{name}: the manifest states no storage of {run.layout.default}")
    drifts = final_drift(run, name)
    drift = over_units(drifts, pd.Series(1.0, drifts.index))
    pictures = measure_medians(run, name, PICTURES)
    share, own = _own(run, name, entry, linears)
    return {
        "gigabytes": stored.bytes / 1e9,
        "bits": stored.bits_per_weight,
        "share": share,
        "own_bits": own,
        "drift": _number(drift.estimate),
        "lo": _number(drift.lo),
        "hi": _number(drift.hi),
        **{key: quantity.value for key, quantity in pictures.items()},
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _own(
    run: Run, name: str, entry: VariantEntry, linears: Mapping[str, tuple[int, ...]]
) -> tuple[float | None, float | None]:
    """Share and bits of the weights in the format, whose number follows from the shapes in the checkpoint.

    None without a technique of linears, or where it names others. Raises ValueError if it rewrote other linears.
    """
    matched = {technique: c.matched for technique, c in run.manifest.sites.get(name, {}).items()}
    if len(matched) != 1:
        return None, None
    is_k = any(name.startswith(k) for k in K_QUANTS)
    coded = [math.prod(s) for s in linears.values() if not is_k or s[1] % SUPER_BLOCK == 0]
    if matched != dict.fromkeys(matched, len(coded)):
        return None, None
    stored = entry.linear_weights[run.layout.default]
    share = sum(coded) / stored.number
    return share, _WIDE - (_WIDE - stored.bits_per_weight) / share


def _linears(run: Run) -> dict[str, tuple[int, ...]]:
    """The shapes of the linears that the run's `sites.block_linears` names."""
    patterns = yaml.safe_load(run.config)["sites"]["block_linears"]
    folder = Path(local(run.manifest.checkpoint.path)) / run.layout.default
    shapes = {
        name.removesuffix(".weight"): shape
        for name, shape in WeightFiles.open(folder).shapes().items()
        if name.endswith(".weight") and len(shape) == 2
    }
    named = named_sites(patterns, [(run.layout.default, name) for name in shapes], run.layout.default)
    return {name: shapes[name] for _, name in named}


def main(path: Path, file: Path) -> None:
    """Writes the table of a run."""
    run = Run.open(path)
    write_json(file, {"weights": run.manifest.checkpoint.weights, "variants": rows(run)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
