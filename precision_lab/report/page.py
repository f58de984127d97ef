"""The report of a run: figures as files, and one page that needs nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from precision_lab.analysis.near_misses import NEAR_BITS
from precision_lab.numerics.formats import REDUCED_FORMATS
from precision_lab.record.files import write_text, writing
from precision_lab.record.run import Run
from precision_lab.report import anomaly, headline, headroom
from precision_lab.report.figures import (
    claim_forest,
    contributions,
    drift,
    drift_surface,
    exponents,
    factorial,
    growth,
    images,
    latency,
    style,
    surface,
    variant_forest,
)
from precision_lab.report.figures.style import Absent, Drawing
from precision_lab.report.rendering import Figure, embed, render, weights_text
from precision_lab.report.view import MOST_VARIANTS, View

FIGURES: tuple[Callable[[View], Drawing | Absent | None], ...] = (
    growth.draw,
    surface.draw,
    exponents.draw,
    contributions.draw,
    drift.draw_steps,
    drift.draw_divergence,
    drift.draw_blocks,
    drift_surface.draw,
    factorial.draw,
    latency.draw,
    images.draw,
)
"""A figure that is None does not belong on the page of a run."""

FORESTS: tuple[Callable[[View], Drawing | None], ...] = (claim_forest.draw, variant_forest.draw)
"""A reader looks at these first where there are many variants, and last where there are few."""

STATUS = {
    "running": "This run is not finished: the page shows what it has left so far.",
    "interrupted": "This run was interrupted: the page shows what it had left until then.",
    "failed": "This run failed: the page shows what it had left until then.",
}


def write(run: Run | Path) -> Path:
    """Writes `figures/*.png`, `figures/*.svg` and `report.html` into the folder of a run; returns the page's path.

    It reads only the files of that folder, so a report can be made again at any time; the same files give the same
    bytes. Raises InputError where `run` is no run folder, or holds a file that cannot be read.
    """
    view = View.open(run)
    folder = view.run.path / "figures"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with style.theme():
        many = len(view.variants) > MOST_VARIANTS
        drawn = (draw(view) for draw in ((*FORESTS, *FIGURES) if many else (*FIGURES, *FORESTS)))
        figures = [embed(drawing, folder) for drawing in drawn if drawing is not None]
    page = view.run.path / "report.html"
    write_text(page, _render(view, figures))
    return page


def _render(view: View, figures: list[Figure]) -> str:
    manifest = view.manifest
    status = manifest.status
    return render(
        "page.html",
        banner=None if status == "complete" else STATUS[status],
        health=view.run.summary.health if view.run.summary else (),
        manifest=manifest,
        layout=view.layout,
        weights_text=weights_text(manifest.checkpoint),
        columns=headline.columns(view),
        variants=headline.rows(view),
        pictures=headline.pictures(view),
        reference=view.reference,
        baseline=view.baseline,
        claims=view.run.summary.claims if view.run.summary else (),
        figures=figures,
        formats=[fmt.name for fmt in REDUCED_FORMATS],
        factorials=factorial.tables(view),
        headroom=headroom.worst(view),
        anomalies=anomaly.first(view),
        near_misses=anomaly.near(view),
        near_bits=NEAR_BITS,
        command=shlex.join(manifest.command),
        config=view.run.config,
    )
