"""The effect of a variant on the picture: the pictures, that of the reference, and their differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from precision_lab.numerics.alpha import chequered, seen
from precision_lab.numerics.metrics import psnr_db
from precision_lab.record.images import read_image
from precision_lab.report.figures import labels, style
from precision_lab.report.figures.style import Absent, Drawing, Look
from precision_lab.report.view import View, results

TITLE = "Pictures"
MOST_ROWS = 6  # (prompt, seed) pairs in the figure
LEAST_COLUMNS = 4  # so that two pictures do not fill a page
MOST_COLUMNS = (
    8  # pictures and differences share one row up to this number; otherwise the differences have a second row
)
LEFT, GAP, SPACE = 0.42, 0.05, 0.1  # inches: for the words on the left, beside a picture, beneath a row
LINE = 0.185  # inches of a line of text
TITLES = 10.0  # points
ALPHA = (
    " Grey squares show through transparent pixels. Such pictures are compared over white, over black and by alpha; "
    "|Δ| is the larger of the first two."
)
GAINS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Pixels = npt.NDArray[np.uint8]
Generation = tuple[int, int]  # prompt_id, seed
Box = tuple[float, float, float, float]  # left, top, width and height in inches
Pictures = Mapping[tuple[str, Generation], Pixels | None]  # None: the result is not finite


def draw(view: View) -> Drawing | Absent | None:
    """Draws the figure; None for a subject without a picture."""
    if view.layout.picture is None:
        return None
    paths = {path.stem: path for path in sorted((view.run.path / "images").glob("*.png"))}
    if not paths:
        return Absent(TITLE, "This run made no pictures.")
    every = generations(paths)
    shown = every[:MOST_ROWS]
    names = [name for name in view.shown if any(stem(name, at) in paths for at in shown)]
    if not names:
        return Absent(TITLE, "The pictures of this run belong to none of its variants.")
    lost_at = broken(view)
    pictures = {
        (name, at): None if (name, at) in lost_at else read_image(paths[stem(name, at)])[0]
        for name in names
        for at in shown
        if stem(name, at) in paths
    }
    figure = _draw_grid(names, shown, pictures, view.reference, style.looks(view.by_colour, view.reference))
    has_alpha = any(pixels is not None and pixels.shape[2] == 4 for pixels in pictures.values())
    lost = any(pixels is None for pixels in pictures.values())
    compared = bool(_differences(pictures, view.reference))
    caption = _caption(len(shown), len(every), view.layout.result.title if lost else "", compared)
    caption += ALPHA * has_alpha + view.selection
    return Drawing("images", TITLE, figure, caption, inline="png")


def _draw_grid(
    names: list[str], shown: list[Generation], pictures: Pictures, reference: str, styles: Mapping[str, Look]
) -> Figure:
    """A row per generation with pictures and then differences, or two rows if one would be too narrow.

    All of it is in one pair of axes in inches, y downwards: a pair for each picture takes four times as long.
    """
    differences = _differences(pictures, reference)
    changed = [name for name in names if any(name == variant for variant, _ in differences)]
    gains = {name: _gain([d for (variant, _), d in differences.items() if variant == name]) for name in changed}
    one_row = len(names) + len(changed) <= MOST_COLUMNS
    columns = max(LEAST_COLUMNS, len(names) + (len(changed) if one_row else 0))
    pitch = (style.WIDTH - LEFT) / columns
    width = pitch - GAP
    height = width * min(1.0, max((p.shape[0] / p.shape[1] for p in pictures.values() if p is not None), default=1.0))
    titles = labels.fitted(names, 72 * (width - GAP), TITLES, lines=3, bold=True)
    head = LINE * (max(title.count("\n") for title in titles.values()) + (2 if one_row and changed else 1)) + GAP
    beneath = LINE if changed else 0.0
    row = height + beneath + (0 if one_row or not changed else height) + SPACE
    gain_row = 0 if one_row or not changed else LINE  # above the first row of differences
    figure = Figure(figsize=(style.WIDTH, head + gain_row + row * len(shown)))
    axes = figure.add_axes((0, 0, 1, 1))
    _bare(axes)
    axes.set(xlim=(0, style.WIDTH), ylim=(head + gain_row + row * len(shown), 0))

    def box(column: int, y: float) -> Box:
        return LEFT + column * pitch, y, width, height

    for line, at in enumerate(shown):
        upper = head + line * row + (gain_row if line else 0)
        lower = upper if one_row else upper + height + GAP + (0 if line else gain_row)
        side: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}
        axes.text(LEFT / 2, upper + height / 2, f"prompt {at[0]}\nseed {at[1]}", **side)
        for column, name in enumerate(names):
            _draw_picture(axes, box(column, upper), (name, at) in pictures, pictures.get((name, at)))
            if line == 0:
                _head(axes, box(column, upper), titles[name], styles[name])
        for column, name in enumerate(changed):
            place = box(len(names) + column if one_row else names.index(name), lower)
            _draw_difference(axes, place, differences.get((name, at)), gains[name])
            if line == 0:
                _head(axes, place, f"{titles[name]}\n" * one_row + f"|Δ| × {gains[name]}", styles[name])
    return figure


def _head(axes: Axes, box: Box, text: str, look: Look) -> None:
    x, y, width, _ = box
    bold: dict[str, Any] = {"fontsize": TITLES, "fontweight": "bold", "color": look.ink}
    axes.text(x + width / 2, y - GAP, text, ha="center", va="bottom", **bold)


def _caption(rows: int, of_rows: int, lost: str, compared: bool) -> str:
    """lost: the title of a result that is not finite for one of the pictures; empty where there is none."""
    some = f" The first {rows} of {of_rows} pairs of prompt and seed are shown." if rows < of_rows else ""
    differences = (
        ", and |Δ| = |variant - reference| of 8-bit pixels, amplified by the gain above each column so that the "
        "pattern can be seen; gains differ between variants. Beneath: PSNR in dB (higher is better)"
        if compared
        else ""
    )
    black = f" Black squares: non-finite {lost}, so there is no picture." if lost else ""
    return f"Pictures of each prompt and seed{differences}.{black}{some}"


def _differences(pictures: Pictures, reference: str) -> dict[tuple[str, Generation], Pixels]:
    """|variant - reference| of what is seen of pictures that both exist, are finite and have the same size."""
    differences = {}
    for (name, at), pixels in pictures.items():
        base = pictures.get((reference, at))
        if name != reference and pixels is not None and base is not None and base.shape == pixels.shape:
            differences[name, at] = np.abs(seen(pixels).astype(np.int16) - seen(base)).astype(np.uint8)
    return differences


def stem(variant: str, at: Generation) -> str:
    return f"{variant}__p{at[0]}__s{at[1]}"


def generations(stems: Iterable[str]) -> list[Generation]:
    """(prompt_id, seed) of every `<variant>__p<prompt_id>__s<seed>`."""
    found = set()
    for stem in stems:
        parts = stem.rsplit("__", 2)
        if len(parts) == 3 and parts[1][1:].isdigit() and parts[2][1:].isdigit():
            found.add((int(parts[1][1:]), int(parts[2][1:])))
    return sorted(found)


def broken(view: View) -> set[tuple[str, Generation]]:
    """Generations with a non-finite result according to either table."""
    drift = None if view.drift is None else view.drift[view.drift["mode"] == "free"]
    tables = [results(table, view.layout) for table in (view.activations, drift) if table is not None]
    bad = [table.loc[table["nonfinite"], ["variant", "prompt_id", "seed"]].drop_duplicates() for table in tables]
    return {(str(v), (int(p), int(s))) for table in bad for v, p, s in table.itertuples(index=False)}


def _gain(differences: Sequence[Pixels]) -> int:
    """The largest of GAINS that leaves 99.5 % of the differing values of every picture unclipped."""
    levels = [np.percentile(d[d > 0], 99.5) for d in differences if d.any()]
    greatest = 255 / max(levels) if levels else 1.0
    return max(gain for gain in GAINS if gain <= greatest)


def _draw_picture(axes: Axes, box: Box, exists: bool, pixels: Pixels | None) -> None:
    x, y, width, height = box
    words: dict[str, Any] = {"ha": "center", "va": "center"}
    centre = x + width / 2, y + height / 2
    if not exists:
        axes.text(*centre, "no picture", color=style.MUTED, **words)
    elif pixels is None:
        _show(axes, box, np.zeros((1, 1, 3), np.uint8), fills=True)
        axes.text(*centre, "not finite", color="white", **words)
    else:
        _show(axes, box, chequered(pixels))


def _draw_difference(axes: Axes, box: Box, difference: Pixels | None, gain: int) -> None:
    """The amplified difference and, beneath, its PSNR."""
    if difference is None:
        return
    colours = np.maximum(difference[..., :3], difference[..., 3:6]) if difference.shape[2] > 3 else difference
    _show(axes, box, np.clip(colours.astype(np.int64) * gain, 0, 255).astype(np.uint8))
    psnr = psnr_db(difference, np.zeros_like(difference))
    x, y, width, height = box
    words = "identical" if math.isnan(psnr) else f"{psnr:.1f} dB"
    axes.text(x + width / 2, y + height + GAP, words, ha="center", va="top")


def _show(axes: Axes, box: Box, pixels: Pixels, fills: bool = False) -> None:
    """Draws a picture as large as fits into the middle of its box; `fills`: whatever its shape.

    One with more pixels than the figure has there is averaged to these.
    """
    x, y, width, height = box
    scale = min(width / pixels.shape[1], height / pixels.shape[0])
    w, h = (width, height) if fills else (scale * pixels.shape[1], scale * pixels.shape[0])
    picture = Image.fromarray(pixels)
    picture.thumbnail((max(1, round(w * style.DPI)), max(1, round(h * style.DPI))))
    left, top = x + (width - w) / 2, y + (height - h) / 2
    extent = (left, left + w, top + h, top)
    axes.imshow(np.asarray(picture), interpolation="none", aspect="auto", extent=extent)  # an SVG keeps its pixels


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_facecolor("none")
    axes.set_autoscale_on(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
