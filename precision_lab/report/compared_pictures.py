"""Pictures of runs beside the base's, with amplified differences where the cases are alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from precision_lab.analysis.across import Across
from precision_lab.analysis.alike import shared_cases
from precision_lab.numerics.alpha import chequered, seen
from precision_lab.record.images import picture_path, read_image
from precision_lab.report.gallery import thumbnail
from precision_lab.report.sections import Picture, Section
from precision_lab.report.wording import MISSING

MOST_PICTURES = 24
GAIN = 8


def pictures(found: Across) -> Iterator[Section]:
    """Pictures of the base's prompts and seeds, with differences where the cases are alike."""
    base = found.runs[found.base]
    if base.layout.picture is None:
        return
    rows: list[tuple[Any, ...]] = []
    total = 0
    for variant in base.manifest.variants:
        for at, prompt in enumerate(base.manifest.prompts):
            for seed in base.manifest.seeds:
                own = picture_path(base.path, variant, at, seed)
                cells: list[Any] = []
                for label, beside in found.beside.items():
                    run = found.runs[label]
                    if prompt in run.manifest.prompts and seed in run.manifest.seeds:
                        theirs = picture_path(run.path, variant, list(run.manifest.prompts).index(prompt), seed)
                        alike = (
                            beside.is_same_model and bool(shared_cases(base, run, variant, variant))
                            if variant in run.manifest.variants
                            else False
                        )
                        cells += _beside(own, theirs, f"{variant}, prompt {at}, seed {seed}, {label}", alike)
                    else:
                        cells += [Picture("", "", "no such case")] * 2
                if own.is_file() and any(cell.uri for cell in cells):
                    total += 1
                    if len(rows) < MOST_PICTURES:
                        rows.append(
                            (
                                f"{variant}, prompt {at}, seed {seed}",
                                _thumb(own, f"{variant}, prompt {at}, seed {seed}, {found.base}"),
                                *cells,
                            )
                        )
    if rows:
        columns = ("picture", found.base, *(name for label in found.beside for name in (label, f"|Δ| × {GAIN}")))
        note = "Pictures of the same prompt and seed. |Δ|: absolute difference of 8-bit pixels from the base, "
        note += f"times {GAIN}, where the cases are alike."
        note += f" The first {len(rows)} of {total} rows are shown." if total > len(rows) else ""
        yield Section("Pictures", [note], columns, rows)


def _thumb(path: Path, alt: str) -> Picture:
    pixels, bad = read_image(path)
    return Picture(alt, thumbnail(chequered(pixels)), "" if not bad else "not finite")


def _beside(own: Path, theirs: Path, alt: str, alike: bool) -> list[Picture]:
    if not theirs.is_file():
        return [Picture("", "", "no picture"), Picture("", "", MISSING)]
    there = _thumb(theirs, alt)
    if not alike or not own.is_file():
        return [there, Picture("", "", MISSING)]
    one, other = read_image(own)[0], read_image(theirs)[0]
    if one.shape != other.shape:
        return [there, Picture("", "", "other size")]
    difference = np.abs(seen(other).astype(np.int16) - seen(one).astype(np.int16))
    if not difference.any():
        return [there, Picture("", "", "identical")]
    colours = np.maximum(difference[..., :3], difference[..., 3:6]) if difference.shape[2] > 3 else difference
    amplified = np.clip(colours * GAIN, 0, 255).astype(np.uint8)
    return [there, Picture(f"difference, {alt}", thumbnail(amplified))]
