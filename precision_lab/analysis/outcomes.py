"""The outcomes of one run against those of another, or of another variant: final results and pictures, case by case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.analysis.alike import CaseKey
from precision_lab.numerics.metrics import compare, compare_images
from precision_lab.record import results
from precision_lab.record.images import picture_path, read_image
from precision_lab.record.run import Run


@dataclass(frozen=True)
class Generations:
    """The generations of one variant of a run."""

    run: Run
    variant: str

    def __str__(self) -> str:
        return f"{self.run.path}:{self.variant}"


@dataclass(frozen=True)
class Distance:
    """The distance of a variant from a reference over `cases`; None where it was not measured.

    Medians over cases, and the worst of them. psnr_db: infinity for identical pictures. nonfinite: the cases that have
    a value that is not finite in either outcome, which have no distance; identical: those without any difference.
    """

    cases: int
    rel_l2: float | None
    rel_l2_worst: float | None
    psnr_db: float | None
    psnr_db_worst: float | None
    ssim: float | None
    ssim_worst: float | None
    identical: int
    nonfinite: int


def distances(reference: Generations, other: Generations, cases: Mapping[CaseKey, CaseKey]) -> pd.DataFrame:
    """One row for each case that has a picture or a stored result in both: prompt_id, seed (of the reference's run),
    rel_l2, psnr_db, ssim, nonfinite.

    cases: of the reference's run, with those of the other. A value is NaN where there is none: without a picture or a
    stored result, for shapes that differ, or where an outcome is not finite. Identical pictures have an infinite PSNR.
    """
    rows = []
    for case, theirs in cases.items():
        result = _result(reference, other, case, theirs)
        picture = _picture(reference, other, case, theirs)
        if result is not None or picture is not None:
            missing = (math.nan, False)
            rel_l2, bad_result = missing if result is None else result
            psnr_db, ssim, bad_picture = (math.nan, *missing) if picture is None else picture
            rows.append((*case, rel_l2, psnr_db, ssim, bad_result or bad_picture))
    return pd.DataFrame(rows, columns=["prompt_id", "seed", "rel_l2", "psnr_db", "ssim", "nonfinite"])


def distance(reference: Generations, other: Generations, cases: Mapping[CaseKey, CaseKey]) -> Distance:
    """`distances` over all cases."""
    found = distances(reference, other, cases)
    rel_l2, psnr_db, ssim = (found[name].dropna().to_numpy(float) for name in ("rel_l2", "psnr_db", "ssim"))
    same = (found["rel_l2"].fillna(0) == 0) & (found["psnr_db"].fillna(math.inf) == math.inf)
    return Distance(
        cases=len(found),
        rel_l2=_middle(rel_l2),
        rel_l2_worst=float(rel_l2.max()) if len(rel_l2) else None,
        psnr_db=_middle(-psnr_db, -1.0),
        psnr_db_worst=float(psnr_db.min()) if len(psnr_db) else None,
        ssim=_middle(ssim),
        ssim_worst=float(ssim.min()) if len(ssim) else None,
        identical=int((same & ~found["nonfinite"]).sum()),
        nonfinite=int(found["nonfinite"].sum()),
    )


def _middle(values: npt.NDArray[np.float64], sign: float = 1.0) -> float | None:
    """The median; between an infinite and a finite middle value the finite one, for half of the cases differ."""
    if not len(values):
        return None
    ordered = np.sort(values)
    lower, upper = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    middle = upper if math.isinf(lower) else (lower + upper) / 2
    return sign * float(middle)


def _result(reference: Generations, other: Generations, case: CaseKey, theirs: CaseKey) -> tuple[float, bool] | None:
    """rel_l2 of a final result, and whether a value is not finite."""
    expected = results.read(results.path_of(reference.run.path, reference.variant, *case))
    found = results.read(results.path_of(other.run.path, other.variant, *theirs))
    if expected is None or found is None or expected.shape != found.shape:
        return None
    metrics = compare(found, expected)
    return float(metrics.values["rel_l2"]), bool(metrics.values["num_nonfinite"])


def _picture(
    reference: Generations, other: Generations, case: CaseKey, theirs: CaseKey
) -> tuple[float, float, bool] | None:
    """PSNR and SSIM of a picture, and whether a pixel was not finite."""
    expected, found = _read(reference, case), _read(other, theirs)
    if expected is None or found is None or expected[0].shape != found[0].shape:
        return None
    if expected[1] or found[1]:
        return math.nan, math.nan, True
    metrics = compare_images(found[0], expected[0])
    identical = metrics.reasons.get("psnr_db") == "identical"
    return math.inf if identical else float(metrics.values["psnr_db"]), float(metrics.values["ssim"]), False


def _read(generations: Generations, case: CaseKey) -> tuple[npt.NDArray[np.uint8], int] | None:
    """The pixels of a picture, and how many of their values were not finite."""
    path = picture_path(generations.run.path, generations.variant, *case)
    return read_image(path) if path.exists() else None
