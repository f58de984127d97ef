"""All pictures of a run in a compact table: a row for each variant, a column for each prompt and seed."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from precision_lab.numerics.alpha import chequered
from precision_lab.record.images import read_image
from precision_lab.report.figures.images import MOST_ROWS, Generation, broken, generations, stem
from precision_lab.report.view import View

MOST_PICTURES = 240
SIDE = 128
"""The longer side of a thumbnail in pixels; smaller pictures keep their size."""

LOSSLESS = 64
"""Up to this side a thumbnail is a PNG, which is as small as JPEG there, and exact."""


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI; without one, `note` says why."""

    alt: str
    uri: str
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """rows: by variant a picture for each of `columns`. of: how many pairs of prompt and seed there are."""

    columns: tuple[Generation, ...]
    of: int
    rows: Mapping[str, tuple[Picture, ...]]


def of(view: View) -> Gallery | None:
    """None where the figure of pictures already shows every variant, prompt and seed, or there are no pictures."""
    if view.layout.picture is None:
        return None
    paths = {path.stem: path for path in sorted((view.run.path / "images").glob("*.png"))}
    every = generations(paths)
    names = [name for name in view.variants if any(stem(name, at) in paths for at in every)]
    if not names or (len(names) <= len(view.shown) and len(every) <= MOST_ROWS):
        return None
    columns = tuple(every[: max(1, MOST_PICTURES // len(names))])
    lost = broken(view)
    rows = {
        name: tuple(_picture(name, at, paths.get(stem(name, at)), (name, at) in lost) for at in columns)
        for name in names
    }
    return Gallery(columns, len(every), rows)


def _picture(name: str, at: Generation, path: Path | None, is_lost: bool) -> Picture:
    alt = f"{name}, prompt {at[0]}, seed {at[1]}"
    if path is None:
        return Picture(alt, "", "no picture")
    if is_lost:
        return Picture(alt, "", "not finite")
    return Picture(alt, _thumbnail(chequered(read_image(path)[0])))


def _thumbnail(pixels: np.ndarray) -> str:
    """A data URI of a picture, at most SIDE pixels long; the same pixels give the same bytes."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    kind = "png" if max(picture.size) <= LOSSLESS else "jpeg"
    picture.convert("RGB").save(file, format=kind, **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
