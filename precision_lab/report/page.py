"""The report of a run: figures as files, and one page that needs nothing else."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from precision_lab.analysis.near_misses import NEAR_BITS
from precision_lab.numerics.formats import REDUCED_FORMATS
from precision_lab.record.files import write_text, writing
from precision_lab.record.manifest import Checkpoint
from precision_lab.record.origin import wording as wording_of_origin
from precision_lab.record.run import Run
from precision_lab.report import anomaly, headline, headroom, wording
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
FILTERS = ("number", "fixed", "interval", "size", "moment", "breakable", "setting")
MEDIA = {"png": "image/png", "svg": "image/svg+xml"}


@dataclass(frozen=True)
class Figure:
    """A figure on the page: a data URI, or the reason for its absence."""

    title: str
    caption: str
    uri: str = ""


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
        figures = [_figure(drawing, folder) for drawing in drawn if drawing is not None]
    page = view.run.path / "report.html"
    write_text(page, _render(view, figures))
    return page


def _figure(drawing: Drawing | Absent, folder: Path) -> Figure:
    if isinstance(drawing, Absent):
        return Figure(drawing.title, drawing.reason)
    png, svg = style.save(drawing, folder)
    file = png if drawing.inline == "png" else svg
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return Figure(drawing.title, drawing.caption, f"data:{MEDIA[drawing.inline]};base64,{data}")


def _render(view: View, figures: list[Figure]) -> str:
    loader = PackageLoader("precision_lab.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {name: getattr(wording, name) for name in FILTERS}
    manifest = view.manifest
    status = manifest.status
    page = environment.get_template("page.html")
    return page.render(
        css=Markup(environment.get_template("page.css").render()),
        banner=None if status == "complete" else STATUS[status],
        health=view.run.summary.health if view.run.summary else (),
        manifest=manifest,
        layout=view.layout,
        weights_text=_weights(manifest.checkpoint),
        columns=headline.columns(view),
        variants=headline.rows(view),
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


def _weights(checkpoint: Checkpoint) -> str:
    """Where the weights come from, with the notes of their source."""
    _, kind, about = wording_of_origin(checkpoint.weights, checkpoint.path)
    return f"{', '.join((kind, *checkpoint.notes))}: {about}"
