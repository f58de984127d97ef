"""The generations of a variant that ended in another composition than the reference's, and the steps when they left.

`precision_lab.numerics.basin` states the definition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from precision_lab.analysis.pictures import reference_of
from precision_lab.numerics.alpha import seen
from precision_lab.numerics.basin import OF_THE_SEEDS, Values, likeness, low_resolution, parting_step, threshold
from precision_lab.record.images import picture_path, read_image
from precision_lab.record.run import Run
from precision_lab.record.summary import Quantity

LEAST_SEEDS = 2
_CASE = ["prompt_id", "seed"]


def left(run: Run, variant: str) -> pd.Series:
    """Per case, 1 if its picture left the basin of the reference's, else 0; or the reason why that is not known.

    Empty for a reference, and where there are no pictures.
    """
    reference = reference_of(run, variant)
    found: dict[tuple[int, int], float | str] = {}
    for prompt in range(len(run.manifest.prompts)) if variant != reference else ():
        own, others = _pictures(run, variant, prompt), _pictures(run, reference, prompt)
        least = threshold([picture for picture in others.values() if picture is not None])
        for seed in own.keys() & others.keys():
            found[prompt, seed] = _has_left(own[seed], others[seed], least)
    cases = sorted(found)
    index = pd.MultiIndex.from_tuples(cases, names=_CASE) if cases else None
    return pd.Series([found[case] for case in cases], index, dtype=object)


def left_counts(run: Run, variant: str) -> pd.Series:
    """`left` for a claim: without prompts whose seeds allow no verdict, and NaN where else it is not known."""
    found = left(run, variant)
    return pd.to_numeric(found[~found.isin(OF_THE_SEEDS)], errors="coerce").astype(float)


def steps(run: Run, variant: str) -> pd.Series:
    """Per case, the number of the step, from 1, at which it left; one more than there are steps if it did not.

    NaN where that is not known: without the drift, rms and noise level of every step.
    """
    found = left_counts(run, variant)
    if found.empty:
        return found
    distances = _distances(run, variant)
    cases = [(int(prompt), int(seed)) for prompt, seed in found.index]
    numbers = [_step(float(gone), distances.get(case)) for case, gone in zip(cases, found, strict=True)]
    return pd.Series(numbers, found.index, dtype=float)


def summaries(run: Run, variant: str) -> dict[str, Quantity]:
    """`basin_left`, the share of cases that left, and `basin_step`, the median step of those.

    Of the cases whose prompts have seeds that differ; undefined if one of them has a value that is not finite.
    """
    every = left(run, variant)
    found = every[~every.isin(OF_THE_SEEDS)]
    reasons = [value for value in (every if found.empty else found) if isinstance(value, str)]
    if found.empty or reasons:
        unknown = Quantity(None, reasons[0] if reasons else "not measured")
        return {"basin_left": unknown, "basin_step": unknown}
    share = Quantity(float(found.mean()))
    if share.value == 0:
        return {"basin_left": share, "basin_step": Quantity(None, "none left")}
    at = float(np.median(steps(run, variant)[found[found == 1].index]))
    return {"basin_left": share, "basin_step": Quantity.of(at, "the latents of every step were not recorded")}


def _pictures(run: Run, variant: str, prompt: int) -> dict[int, Values | None]:
    """By seed, the pictures of a prompt in low resolution; None for one with a pixel that is not finite."""
    pictures: dict[int, Values | None] = {}
    for seed in run.manifest.seeds:
        path = picture_path(run.path, variant, prompt, seed)
        if path.is_file():
            image, bad = read_image(path)
            pictures[seed] = None if bad else low_resolution(seen(image))
    return pictures


def _has_left(own: Values | None, other: Values | None, least: float | str) -> float | str:
    if own is None or other is None:
        return "nonfinite"
    if isinstance(least, str):
        return least
    found = likeness(own, other)
    return "constant" if math.isnan(found) else float(found < least)


def _step(gone: float, trajectory: tuple[list[float], list[float]] | None) -> float:
    if math.isnan(gone) or trajectory is None:
        return math.nan
    distances, levels = trajectory
    return float(parting_step(distances, levels) if gone else len(levels) + 1)


def _distances(run: Run, variant: str) -> Mapping[tuple[int, int], tuple[list[float], list[float]]]:
    """By case, the distance of the result from the reference's after each step, and the noise levels of the steps.

    The distance is rel_l2 times the norm of the reference's result, which is rms times the root of its size. Cases
    without all of them are left out, and so are levels that do not fall.
    """
    result, ranges = run.layout.result, run.activations
    if "rel_l2" not in run.drift or not {"rms", "numel", "sigma"} <= set(ranges):
        return {}
    keys = [*_CASE, "step"]
    drift, norms = (
        table[(table["variant"] == name) & (table["component"] == result.component) & (table["site"] == result.site)]
        for table, name in ((run.drift[run.drift["mode"] == "free"], variant), (ranges, reference_of(run, variant)))
    )
    norms = norms.drop_duplicates(keys)[[*keys, "sigma", "rms", "numel"]]
    rows = drift[[*keys, "rel_l2"]].merge(norms, on=keys, how="outer").sort_values(keys)
    rows = rows.astype(dict.fromkeys(("rel_l2", "sigma", "rms", "numel"), float))
    distance = rows["rel_l2"] * rows["rms"] * np.sqrt(rows["numel"])
    found = {}
    for _, own in rows.assign(distance=distance).groupby(_CASE):
        case = int(own["prompt_id"].iloc[0]), int(own["seed"].iloc[0])
        levels = own["sigma"].to_numpy(float)
        if own["distance"].notna().all() and np.all(np.diff(levels) < 0) and levels[-1] > 0:
            found[case] = (own["distance"].to_list(), levels.tolist())
    return found
