"""The report of a run: figures as files, and one page that needs nothing else."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from precision_lab.analysis.near_misses import NEAR_BITS
from precision_lab.numerics.formats import REDUCED_FORMATS
from precision_lab.report import anomaly, headroom, wording
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
from precision_lab.report.tables import MOST_VARIANTS, Run, load

# one that gives None does not belong on the page of this run
FIGURES: tuple[Callable[[Run], Drawing | Absent | None], ...] = (
    growth.draw,
    surface.draw,
    exponents.draw,
    contributions.draw,
    drift.draw_steps,
    drift.draw_blocks,
    drift_surface.draw,
    factorial.draw,
    latency.draw,
    images.draw,
)
# what a run with many variants is read from first, and one with few last
FORESTS: tuple[Callable[[Run], Drawing | None], ...] = (claim_forest.draw, variant_forest.draw)
WEIGHTS = {
    "trained": ("Trained weights", "a checkpoint trained for this study, not the published model"),
    "synthetic": (
        "Synthetic weights",
        "made, not trained; growth of activations follows the published end points; pictures carry no meaning",
    ),
    "published": ("Published weights", "read from the given path or Hub id, not made by this package"),
}
STATUS = {
    "running": "This run is not finished: the page shows what it has left so far.",
    "interrupted": "This run was interrupted: the page shows what it had left until then.",
    "failed": "This run failed: the page shows what it had left until then.",
}
MEDIA = {"png": "image/png", "svg": "image/svg+xml"}


@dataclass(frozen=True)
class Figure:
    """A figure on the page: a data URI, or the reason for its absence."""

    title: str
    caption: str
    uri: str = ""


def write(run: Path) -> Path:
    """Writes `figures/*.png`, `figures/*.svg` and `report.html` into the run folder `run`; returns the page's path.

    Reads only the files of that folder, so a report can be made again at any time; the same files give the same bytes.
    Raises InputError where `run` is no run folder or of an unknown schema_version.
    """
    content = load(run)
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    with style.theme():
        many = len(content.variants) > MOST_VARIANTS
        drawn = (draw(content) for draw in ((*FORESTS, *FIGURES) if many else (*FIGURES, *FORESTS)))
        figures = [_figure(drawing, folder) for drawing in drawn if drawing is not None]
    page = run / "report.html"
    page.write_text(_render(content, figures), encoding="utf-8")
    return page


def _figure(drawing: Drawing | Absent, folder: Path) -> Figure:
    if isinstance(drawing, Absent):
        return Figure(drawing.title, drawing.reason)
    png, svg = style.save(drawing, folder)
    file = png if drawing.inline == "png" else svg
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return Figure(drawing.title, drawing.caption, f"data:{MEDIA[drawing.inline]};base64,{data}")


def _render(run: Run, figures: list[Figure]) -> str:
    loader = PackageLoader("precision_lab.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        name: getattr(wording, name) for name in ("number", "fixed", "interval", "size", "moment", "breakable")
    }
    environment.globals |= {"reason": wording.reason, "address": wording.address, "dtype": wording.dtype}
    manifest = run.manifest
    status = str(manifest.get("status"))
    page = environment.get_template("page.html")
    return page.render(
        css=Markup(environment.get_template("page.css").render()),
        experiment=manifest.get("experiment") or run.summary.get("experiment") or run.path.name,
        banner=None if status == "complete" else STATUS.get(status, f"The status of this run is {status!r}."),
        manifest=manifest,
        environment=manifest.get("environment") or {},
        weights=run.weights,
        weights_text=_weights(run),
        stream_scale=wording.stream_scale(run.inflate),
        variants=[_variant(run, name) for name in run.variants],
        reference=run.reference,
        baseline=run.baseline,
        claims=run.summary.get("claims", []),
        figures=figures,
        formats=[fmt.name for fmt in REDUCED_FORMATS],
        factorials=factorial.tables(run),
        headroom=headroom.worst(run),
        anomalies=anomaly.first(run),
        near_misses=anomaly.near(run),
        near_bits=NEAR_BITS,
        command=shlex.join(map(str, manifest.get("command", []))),
        config=run.config,
    )


def _weights(run: Run) -> str:
    """What the run says of its weights, and of a factor on their residual streams."""
    kind, about = WEIGHTS.get(run.weights or "", ("Weights", "the run does not say where they come from"))
    return f"{', '.join(filter(None, (kind, wording.stream_scale(run.inflate))))}: {about}"


def _variant(run: Run, name: str) -> dict[str, Any]:
    """A row of the headline table: the run's entry, its name and its colour in the figures."""
    look = style.looks(run.by_colour, run.reference)[name]
    sites = (run.manifest.get("sites") or {}).get(name, {})
    described = (run.manifest.get("variants") or {}).get(name, {})
    return {
        "name": name,
        "colour": look.colour if name in run.shown else None,
        "sites": sites,
        "entry": run.entry(name),
        "stored": described.get("linear_weights", {}).get("transformer"),
        "switches": described.get("switches"),
    }
