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
THUMBNAIL = 320  # pixels of the longer side in the figure; distances are measured at full size
ALPHA = (
    " Grey squares show through transparent pixels. Such pictures are compared over white, over black and by alpha; "
    "|Δ| is the larger of the first two."
)
GAINS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Pixels = npt.NDArray[np.uint8]
Generation = tuple[int, int]  # prompt_id, seed
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
    """A row of axes per generation, with pictures and then differences; two rows if one would be too narrow."""
    differences = _differences(pictures, reference)
    changed = [name for name in names if any(name == variant for variant, _ in differences)]
    gains = {name: _gain([d for (variant, _), d in differences.items() if variant == name]) for name in changed}
    one_row = len(names) + len(changed) <= MOST_COLUMNS
    columns = max(LEAST_COLUMNS, len(names) + (len(changed) if one_row else 0))
    side = (style.WIDTH - 0.4) / columns
    figure = style.new_figure(
        0.6 + len(shown) * (side + 0.25 if one_row else 2 * side + 0.4), w_pad=0.02, h_pad=0.02, hspace=0, wspace=0
    )
    titles = labels.fitted(names, 72 * side * 0.94, 10, lines=3, bold=True)
    grid = figure.subplots(len(shown) * (1 if one_row else 2), columns, squeeze=False)
    for axes in grid.flat:
        _bare(axes)
    for line, at in enumerate(shown):
        upper, lower = (grid[line], grid[line][len(names) :]) if one_row else grid[2 * line : 2 * line + 2]
        upper[0].set_ylabel(f"prompt {at[0]}, seed {at[1]}")
        for axes, name in zip(upper, names, strict=False):
            _draw_picture(axes, (name, at) in pictures, pictures.get((name, at)))
        for column, name in enumerate(changed):
            axes = lower[column] if one_row else lower[names.index(name)]
            _draw_difference(axes, differences.get((name, at)), gains[name])
            if line == 0:
                heading = f"{titles[name]}\n" if one_row else ""
                axes.set_title(f"{heading}|Δ| × {gains[name]}", color=styles[name].ink, loc="center")
    for axes, name in zip(grid[0], names, strict=False):
        axes.set_title(titles[name], color=styles[name].ink, loc="center")
    return figure


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


def _thumbnail(pixels: Pixels) -> Pixels:
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)


def _draw_picture(axes: Axes, exists: bool, pixels: Pixels | None) -> None:
    words: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center"}
    if not exists:
        axes.text(0.5, 0.5, "no picture", color=style.MUTED, **words)
    elif pixels is None:
        axes.imshow(np.zeros((1, 1, 3)))
        axes.text(0.5, 0.5, "not finite", color="white", **words)
    else:
        axes.imshow(_thumbnail(chequered(pixels)), interpolation="nearest")


def _draw_difference(axes: Axes, difference: Pixels | None, gain: int) -> None:
    if difference is None:
        return
    colours = np.maximum(difference[..., :3], difference[..., 3:6]) if difference.shape[2] > 3 else difference
    amplified = np.clip(colours.astype(np.int64) * gain, 0, 255).astype(np.uint8)
    axes.imshow(_thumbnail(amplified), interpolation="nearest")
    psnr = psnr_db(difference, np.zeros_like(difference))
    axes.set_xlabel("identical" if math.isnan(psnr) else f"{psnr:.1f} dB", labelpad=2)


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_facecolor("none")
    for spine in axes.spines.values():
        spine.set_visible(False)
