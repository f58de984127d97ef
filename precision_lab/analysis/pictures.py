"""The pictures of a run against a reference's: PSNR and SSIM by case."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.numerics.metrics import compare_images
from precision_lab.record.images import read_image
from precision_lab.record.run import Run
from precision_lab.record.summary import Quantity

_CASE = re.compile(r"__p(\d+)__s(\d+)\.png")
_COLUMNS = ("psnr_db", "ssim")


def reference_of(run: Run, variant: str) -> str:
    """What the variant is compared with: the reference of the run, or its own where it overrides settings of cases."""
    entry = run.manifest.variants[variant]
    return entry.reference if entry.settings else run.reference


def distances(run: Run, variant: str, reference: str) -> pd.DataFrame:
    """By case (prompt_id, seed): psnr_db and ssim of the variant's picture, and size, its number of pixel values.

    Identical pictures have a PSNR of infinity. A value is NaN if a pixel of either picture was not finite, and an SSIM
    also if the pictures are smaller than its window. Empty for the reference, and where there are no pictures.
    """
    rows = {}
    for path in (run.path / "images").glob(f"{variant}__p*__s*.png"):
        case, other = _CASE.fullmatch(path.name.removeprefix(variant)), run.path / "images"
        other /= reference + path.name.removeprefix(variant)
        if case and variant != reference and other.is_file():
            rows[int(case[1]), int(case[2])] = _distance(path, other)
    index = pd.MultiIndex.from_tuples(sorted(rows), names=["prompt_id", "seed"]) if rows else None
    return pd.DataFrame([rows[case] for case in sorted(rows)], index, [*_COLUMNS, "size"], dtype=float)


def medians(run: Run, variant: str, reference: str) -> tuple[Quantity, Quantity]:
    """Median PSNR and SSIM over cases; undefined if a pixel was not finite."""
    if run.layout.picture is None:
        return Quantity(None, "no picture"), Quantity(None, "no picture")
    found = distances(run, variant, reference)
    if found.empty:
        return Quantity(None, "not measured"), Quantity(None, "not measured")
    if found["psnr_db"].isna().any():
        return Quantity(None, "nonfinite"), Quantity(None, "nonfinite")
    psnr = _median_best(found["psnr_db"].to_numpy(float))
    return Quantity.of(psnr, "identical"), Quantity.of(float(found["ssim"].median(skipna=False)), "too_small")


def _median_best(values: npt.NDArray[np.float64]) -> float:
    """The median of values of which infinity is the best.

    Between a finite and an infinite middle value it is the finite one: their mean, infinity, would say that the
    pictures are identical where half of them are not.
    """
    ordered = np.sort(values)
    lower, upper = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float(lower if math.isinf(upper) else (lower + upper) / 2)


def _distance(path: Path, other: Path) -> tuple[float, float, float]:
    (image, bad), (expected, expected_bad) = read_image(path), read_image(other)
    if bad or expected_bad:
        return math.nan, math.nan, float(image.size)
    found = compare_images(image, expected)
    identical = found.reasons.get("psnr_db") == "identical"
    return math.inf if identical else float(found.values["psnr_db"]), float(found.values["ssim"]), float(image.size)
