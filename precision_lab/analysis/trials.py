"""The trials of a search as a table: one row for each trial and case."""

from __future__ import annotations

from typing import Any

import pandas as pd

from precision_lab.analysis.measures import CASE
from precision_lab.analysis.pictures import distances
from precision_lab.record.run import Run


def outcomes(run: Run) -> pd.DataFrame:
    """The trials of a run (`precision_lab.lab.trials.Trials.evaluate`), in the order of its variants.

    Columns: trial, its key; dtype; prompt_id, seed; steps, the number that was computed; rel_l2 of the result after the
    last step, and largest_rel_l2 over the steps, both NaN if a value is not finite; psnr_db and ssim of the picture,
    NaN without one; num_nonfinite in results and picture; finite, whether these and the residual streams were;
    first_site, first_port and first_step of the first value that was not; inputs_finite, whether it arose there;
    weights_gb, of all parameters with their scales, and bits_per_weight; error, what it raised, or None.
    """
    layout, rows = run.layout, []
    result = run.drift[
        (run.drift["mode"] == "free")
        & (run.drift["component"] == layout.result.component)
        & (run.drift["site"] == layout.result.site)
    ]
    for name, entry in run.manifest.variants.items():
        if name == run.reference:
            continue
        stored = entry.weights.values()
        number, size = sum(each.number for each in stored), sum(each.bytes for each in stored)
        about = {
            "trial": name,
            "dtype": entry.dtype,
            "weights_gb": size / 1e9,
            "bits_per_weight": 8 * size / number if number else float("nan"),
            "error": run.manifest.errors.get(name),
        }
        generations = run.generations[run.generations["variant"] == name]
        if generations.empty:
            rows.append(about)
            continue
        pictures = distances(run, name, run.reference)
        compared = dict(zip(pictures.index, pictures.to_dict("records"), strict=True))
        for generation in generations.to_dict("records"):
            case = tuple(int(generation[key]) for key in CASE)
            own = _of(result, name, case).sort_values("order")
            bad = _of(run.nonfinite, name, case)
            finite = bad.empty and generation["num_nonfinite"] == 0
            errors = own["rel_l2"].astype(float)
            seen: dict[str, float] = compared.get(case, {})
            rows.append(
                {
                    **about,
                    **dict(zip(CASE, case, strict=True)),
                    "steps": len(own),
                    "rel_l2": float(errors.iloc[-1]) if finite and len(own) else float("nan"),
                    "largest_rel_l2": float(errors.max()) if finite and len(own) else float("nan"),
                    "psnr_db": seen.get("psnr_db", float("nan")),
                    "ssim": seen.get("ssim", float("nan")),
                    "num_nonfinite": int(generation["num_nonfinite"]),
                    "finite": finite,
                    **_first(run, bad),
                }
            )
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype(COLUMNS)


COLUMNS = {
    "trial": "string",
    "dtype": "string",
    "prompt_id": "Int64",
    "seed": "Int64",
    "steps": "Int64",
    "rel_l2": "float64",
    "largest_rel_l2": "float64",
    "psnr_db": "float64",
    "ssim": "float64",
    "num_nonfinite": "Int64",
    "finite": "boolean",
    "first_site": "string",
    "first_port": "string",
    "first_step": "Int64",
    "inputs_finite": "boolean",
    "weights_gb": "float64",
    "bits_per_weight": "float64",
    "error": "string",
}
"""The columns of `outcomes` and their dtypes."""


def _of(table: pd.DataFrame, name: str, case: tuple[int, ...]) -> pd.DataFrame:
    rows = table[table["variant"] == name]
    for column, value in zip(CASE, case, strict=True):
        rows = rows[rows[column] == value]
    return rows


def _first(run: Run, bad: pd.DataFrame) -> dict[str, Any]:
    if bad.empty or pd.isna(bad["site"].iloc[0]):
        return {}
    row = bad.iloc[0]
    return {
        "first_site": run.layout.address(row["component"], row["site"]),
        "first_port": row["port"],
        "first_step": row["step"],
        "inputs_finite": row["inputs_finite"],
    }
