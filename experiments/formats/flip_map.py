"""`python -m experiments.formats.flip_map RUN DIR PROMPT VARIANT ...`: where a viewer sees the difference.

RUN: a folder of a run with pictures; PROMPT: the number of one of its prompts. Writes DIR/flip.png and .svg: the
picture of the reference, then of each variant its picture above its map of FLIP. Needs the extra `flip`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable

from precision_lab.numerics.perceptual import flip_map
from precision_lab.record.images import picture_path, read_image
from precision_lab.record.run import Run
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Drawing

_COLOURS = "magma"
"""Of FLIP's own maps."""


def draw(run: Run, prompt: int, variants: Sequence[str]) -> Drawing:
    """The pictures of the first seed. All maps share a scale, whose end is the largest value."""
    seed = run.manifest.seeds[0]
    ref, *images = (
        read_image(run.path / picture_path(Path(), name, prompt, seed))[0] for name in (run.reference, *variants)
    )
    maps = [flip_map(image, ref) for image in images]
    figure = style.new_figure(3.3)
    grid = figure.subplots(2, 1 + len(variants), squeeze=False)
    for axes in grid.flat:
        _bare(axes)
    grid[0][0].imshow(ref, interpolation="nearest")
    grid[0][0].set_title(run.reference, loc="center")
    largest = max(float(each.max()) for each in maps)
    for (above, below), name, image, errors in zip(grid.T[1:], variants, images, maps, strict=True):
        above.imshow(image, interpolation="nearest")
        above.set_title(style.wrap(name, 14), loc="center")
        below.imshow(errors, cmap=_COLOURS, vmin=0, vmax=largest, interpolation="nearest")
        below.set_xlabel(f"mean {errors.mean():.3f}", labelpad=2)
    scale = ScalarMappable(cmap=_COLOURS)
    scale.set_clim(0, largest)
    figure.colorbar(scale, ax=grid[1], label="FLIP (0: not visible)", fraction=0.02, pad=0.01)
    grid[1][0].text(1, 0.5, "FLIP of each pixel", ha="right", va="center", transform=grid[1][0].transAxes)
    return Drawing("flip", "Where a viewer sees the difference", figure, "")


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def main(path: Path, folder: Path, prompt: int, variants: Sequence[str]) -> None:
    """Draws the figure of one run."""
    folder.mkdir(parents=True, exist_ok=True)
    with style.theme():
        style.save(draw(Run.open(path), prompt, variants), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
