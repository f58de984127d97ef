"""The pictures of a run against a reference's, by case: PSNR and SSIM, and what `numerics.pictures` measures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.numerics.metrics import compare_images
from precision_lab.numerics.pictures import MEASURES, OF_THE_REFERENCE, Pair
from precision_lab.record.images import read_image
from precision_lab.record.run import Run
from precision_lab.record.summary import Quantity

_CASE = re.compile(r"__p(\d+)__s(\d+)\.png")
_COLUMNS = ("psnr_db", "ssim")
_NONFINITE = "nonfinite"


def reference_of(run: Run, variant: str) -> str:
    """What the variant is compared with: the reference of the run, or its own where it overrides settings of cases."""
    entry = run.manifest.variants[variant]
    return entry.reference if entry.settings else run.reference


def distances(run: Run, variant: str, reference: str) -> pd.DataFrame:
    """By case (prompt_id, seed): psnr_db and ssim of the variant's picture, and size, its number of pixel values.

    Identical pictures have a PSNR of infinity. A value is NaN if a pixel of either picture was not finite, and an SSIM
    also if the pictures are smaller than its window. Empty for the reference, and where there are no pictures.
    """
    rows = {case: _distance(*paths) for case, paths in _pairs(run, variant, reference) if variant != reference}
    return pd.DataFrame(list(rows.values()), _index(rows), [*_COLUMNS, "size"], dtype=float)


def measured(run: Run, variant: str, names: Iterable[str]) -> pd.DataFrame:
    """By case, measures of the variant's picture beside its reference's: a number, or the reason why there is none.

    names: of `MEASURES`. `nonfinite` where a pixel of either picture was not finite. Empty where there are no pictures.
    Of the reference itself it has those that a picture has alone.
    """
    reference = reference_of(run, variant)
    names = [name for name in names if variant != reference or MEASURES[name].of_reference]
    rows = {case: _measures(*paths, names) for case, paths in _pairs(run, variant, reference)} if names else {}
    return pd.DataFrame(list(rows.values()), _index(rows), names, dtype=object)


def measure(run: Run, variant: str, name: str) -> pd.Series:
    """Per case, one measure for a claim: NaN where it is undefined, without the cases of which the reference has none.

    Values below the `least` of the measure count as that.
    """
    found = measured(run, variant, [name])
    if name not in found or found.empty:
        return pd.Series(dtype=float)
    values = found[name][~found[name].isin(OF_THE_REFERENCE)]
    return pd.to_numeric(values, errors="coerce").astype(float).clip(lower=MEASURES[name].least)


def measure_medians(run: Run, variant: str, names: Iterable[str]) -> dict[str, Quantity]:
    """Medians over cases of `measured`, of the cases that the reference allows; a mismatch counts as infinitely far."""
    names = list(names)
    if run.layout.picture is None:
        return dict.fromkeys(names, Quantity(None, "no picture"))
    there = [name for name in names if MEASURES[name].is_installed]
    found = measured(run, variant, there)
    absent = {name: Quantity(None, f"the extra {MEASURES[name].extra} is not installed") for name in names}
    return absent | {name: _median_of(found[name] if name in found else pd.Series(dtype=object)) for name in there}


def _median_of(values: pd.Series) -> Quantity:
    if values.empty:
        return Quantity(None, "not measured")
    if (values == _NONFINITE).any():
        return Quantity(None, _NONFINITE)
    known = values[~values.isin(OF_THE_REFERENCE)]
    if known.empty:
        return Quantity(None, str(values.iloc[0]))
    reasons = [value for value in known if isinstance(value, str)]
    numbers = [math.inf if isinstance(value, str) else float(value) for value in known]
    return Quantity.of(float(np.median(numbers)), reasons[0] if reasons else "undefined")


def _pairs(run: Run, variant: str, reference: str) -> Iterator[tuple[tuple[int, int], tuple[Path, Path]]]:
    """The pictures of a variant and of the reference, by case and in its order, where there are both."""
    folder = run.path / "images"
    names = {path.name.removeprefix(variant): path for path in folder.glob(f"{variant}__p*__s*.png")}
    matches = [match for name in names if (match := _CASE.fullmatch(name))]
    cases = {(int(match[1]), int(match[2])): match[0] for match in matches}
    for case, name in sorted(cases.items()):
        if (other := folder / f"{reference}{name}").is_file():
            yield case, (names[name], other)


def _index(rows: Iterable[tuple[int, int]]) -> pd.MultiIndex | None:
    cases = list(rows)
    return pd.MultiIndex.from_tuples(cases, names=["prompt_id", "seed"]) if cases else None


def _measures(path: Path, other: Path, names: Iterable[str]) -> list[float | str]:
    (image, bad), (expected, expected_bad) = read_image(path), read_image(other)
    pair = Pair(image, expected)
    return [_NONFINITE if bad or expected_bad else MEASURES[name].measure(pair) for name in names]


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
