"""The report of a run: figures as files, and one page that needs nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from precision_lab.analysis.near_misses import NEAR_BITS
from precision_lab.numerics.formats import REDUCED_FORMATS
from precision_lab.record.files import write_text, writing
from precision_lab.record.run import Run
from precision_lab.report import anomaly, conclusion, drawing, gallery, headline, headroom
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
    surface,
    variant_forest,
)
from precision_lab.report.interactive import sites
from precision_lab.report.rendering import Figure, numbered, render, weights_text
from precision_lab.report.view import View

FIGURES: Mapping[str, tuple[drawing.Draw, ...]] = {
    "pictures": (images.draw,),
    "growth": (growth.draw, surface.draw, exponents.draw, contributions.draw),
    "error": (
        variant_forest.draw,
        drift.draw_steps,
        drift.draw_divergence,
        drift.draw_blocks,
        drift_surface.draw,
        factorial.draw,
    ),
    "time": (latency.draw,),
    "claims": (claim_forest.draw,),
}
"""The figures of each part of the page, in its order. One that is None does not belong on the page of a run."""

EXPLORER = ("echarts.min.js", "site_values.js", "charts.js", "site_table.js", "explorer.js")
"""The scripts of the explorer of sites, each after those it uses."""

STATUS = {
    "running": "This run is not finished: the page shows what it has left so far.",
    "interrupted": "This run was interrupted: the page shows what it had left until then.",
    "failed": "This run failed: the page shows what it had left until then.",
}


def write(run: Run | Path, beside: ProcessPoolExecutor | None = None) -> Path:
    """Writes `figures/*.png`, `figures/*.svg` and `report.html` into the folder of a run; returns the page's path.

    It reads only the files of that folder, so a report can be made again at any time; the same files give the same
    bytes. beside: draws some of the figures, see `record.beside`. Raises InputError where `run` is no run
    folder, or holds a file that cannot be read.
    """
    view = View.open(run)
    folder = view.run.path / "figures"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    places = [(part, draw) for part, draws in FIGURES.items() for draw in draws]
    drawn = drawing.figures(view, [draw for _, draw in places], folder, beside)
    page_of = _page(view)  # first: the other process draws meanwhile
    figures: dict[str, list[Figure]] = {part: [] for part in FIGURES}
    for (part, _), figure in zip(places, numbered(drawn), strict=True):
        if figure is not None:
            figures[part].append(figure)
    page = view.run.path / "report.html"
    write_text(page, page_of(figures=figures))
    return page


def _page(view: View) -> partial[str]:
    """Renders the page, given its figures; all other content is found here."""
    manifest = view.manifest
    status = manifest.status
    explorer = sites.explorer(view)
    pictures = gallery.of(view)
    return partial(
        render,
        "page.html",
        scripts=(*(EXPLORER if explorer else ()), *(pictures.scripts if pictures else ())),
        data={"explorer-data": explorer} if explorer else {},
        explorer=explorer,
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
        question=conclusion.question(view),
        conclusion=conclusion.sentences(view),
        drift=conclusion.drift(view),
        gallery=pictures,
        formats=[fmt.name for fmt in REDUCED_FORMATS],
        factorials=factorial.tables(view),
        headroom=headroom.worst(view),
        anomalies=anomaly.first(view),
        near_misses=anomaly.near(view),
        near_bits=NEAR_BITS,
        command=shlex.join(manifest.command),
        config=view.run.config,
    )
