"""All pictures of a run, each inside the page once: a row for each variant, a column for each prompt and seed.

The viewer of the page compares the pictures of this table, whose pixels are those of the files.
"""

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
from precision_lab.report.figures.images import Generation, broken, generations, stem
from precision_lab.report.view import View

MOST_PICTURES = 480
MOST_BYTES = 8_000_000
"""Of the PNG files inside a page, in bytes, a third more in base64: the rest of a page of 20 MB is for figures."""

SIDE = 128
"""The longer side in pixels of a thumbnail, which is shown for a file above the limit."""

NOT_FINITE = "not finite, drawn as 0"
SCRIPTS = ("png.js", "difference.js", "pan_zoom.js", "pictures.js")
"""Of the viewer, in `assets`, in the order in which they use each other."""


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI; without one, `note` says why. exact: it has all pixels of the file, else a thumbnail."""

    alt: str
    uri: str
    note: str = ""
    exact: bool = False


@dataclass(frozen=True)
class Gallery:
    """rows: by variant a picture for each of `columns`. of: how many pairs of prompt and seed there are.

    cases: the pairs whose pictures can be compared, each with its prompt. names: the variants that can be, the
    reference first. first: the variant to compare with the reference at first.
    """

    columns: tuple[Generation, ...]
    of: int
    rows: Mapping[str, tuple[Picture, ...]]
    cases: Mapping[Generation, str]
    names: tuple[str, ...]
    first: str
    has_alpha: bool
    side: int

    @property
    def scripts(self) -> tuple[str, ...]:
        """Of the viewer, if there is anything to compare."""
        return SCRIPTS if self.cases else ()

    @property
    def thumbnails(self) -> int:
        """How many pictures are not exact."""
        return sum(bool(each.uri) and not each.exact for pictures in self.rows.values() for each in pictures)


def of(view: View) -> Gallery | None:
    """None for a subject without a picture and for a run that made none."""
    if view.layout.picture is None:
        return None
    paths = {path.stem: path for path in sorted((view.run.path / "images").glob("*.png"))}
    every = generations(paths)
    names = [name for name in view.variants if any(stem(name, at) in paths for at in every)]
    if not names:
        return None
    columns = tuple(every[: max(1, MOST_PICTURES // len(names))])
    lost = broken(view)
    # all variants of a case before the next; of one case, those in the crowded figures first
    order = [(name, at) for at in columns for name in view.by_colour if name in names]
    left = MOST_BYTES
    pictures = {}
    for name, at in order:
        path = paths.get(stem(name, at))
        left -= path.stat().st_size if path else 0
        pictures[name, at] = _picture(name, at, path, (name, at) in lost, left >= 0)
    rows = {name: tuple(picture for picture, _ in (pictures[name, at] for at in columns)) for name in names}
    exact = {key for key, (picture, _) in pictures.items() if picture.exact}
    cases = {at: _prompt(view, at) for at in columns if sum(case == at for _, case in exact) > 1}
    compared = tuple(name for name in names if any((name, at) in exact for at in cases))
    first = next((name for name in (view.baseline, *compared) if name in compared and name != view.reference), "")
    shapes = [shape for _, shape in pictures.values() if shape]
    side = max(max(shape[:2]) for shape in shapes)
    return Gallery(columns, len(every), rows, cases, compared, first, any(s[2] == 4 for s in shapes), side)


def _prompt(view: View, at: Generation) -> str:
    prompts = view.manifest.prompts
    return prompts[at[0]] if at[0] < len(prompts) else ""


def _picture(
    name: str, at: Generation, path: Path | None, is_lost: bool, fits: bool
) -> tuple[Picture, tuple[int, ...] | None]:
    """A picture and the shape of its pixels: (height, width, channels)."""
    alt = f"{name}, prompt {at[0]}, seed {at[1]}"
    if path is None:
        return Picture(alt, "", "no picture"), None
    pixels, num_nonfinite = read_image(path)
    note = NOT_FINITE if is_lost or num_nonfinite else ""
    uri = _uri("png", path.read_bytes()) if fits else thumbnail(chequered(pixels))
    return Picture(f"{alt}, {note}" if note else alt, uri, note, fits), pixels.shape


def thumbnail(pixels: np.ndarray) -> str:
    """A data URI of a picture, at most SIDE pixels long; the same pixels give the same bytes."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.convert("RGB").save(file, format="jpeg", quality=85)
    return _uri("jpeg", file.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
