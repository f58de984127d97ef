"""What all pages share: their templates, figures inside the page, and the words for weights."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from precision_lab.record.manifest import Checkpoint
from precision_lab.record.origin import wording as wording_of_origin
from precision_lab.report import embedding, wording
from precision_lab.report.figures import style
from precision_lab.report.figures.alt import describe
from precision_lab.report.figures.style import Absent, Drawing

FILTERS = ("number", "fixed", "interval", "size", "moment", "breakable", "setting", "slug", "unbroken")
MEDIA = {"png": "image/png", "svg": "image/svg+xml"}


@dataclass(frozen=True)
class Figure:
    """A figure on the page: a data URI, or the reason for its absence.

    name: unique on the page. number: counted over the figures that are there, 0 for an absent one and before counting.
    """

    name: str
    title: str
    caption: str
    number: int = 0
    alt: str = ""
    uri: str = ""


def embed(drawings: Iterable[Drawing | Absent], folder: Path, prefix: str = "") -> list[Figure]:
    """Writes the files of figures into `folder`, and returns them in their order for a page, numbered from 1.

    prefix: of the names of the files.
    """
    return [figure for figure in numbered(embedded(drawing, folder, prefix) for drawing in drawings) if figure]


def numbered(figures: Iterable[Figure | None]) -> list[Figure | None]:
    """Figures in their order on a page; those that are there are numbered from 1."""
    number = itertools.count(1)
    return [replace(figure, number=next(number)) if figure and figure.uri else figure for figure in figures]


def embedded(drawing: Drawing | Absent, folder: Path, prefix: str = "") -> Figure:
    """Writes the files of a figure into `folder`, and returns it for a page, without its number."""
    if isinstance(drawing, Absent):
        return Figure(wording.slug(drawing.title), drawing.title, drawing.reason)
    drawing = replace(drawing, name=f"{prefix}{drawing.name}")
    png, svg = style.save(drawing, folder)
    file = png if drawing.inline == "png" else svg
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    uri = f"data:{MEDIA[drawing.inline]};base64,{data}"
    return Figure(drawing.name, drawing.title, drawing.caption, alt=describe(drawing), uri=uri)


def render(template: str, *, scripts: Sequence[str] = (), data: Mapping[str, Any] | None = None, **content: Any) -> str:
    """A page from one of the templates, which includes head.html and foot.html.

    scripts: those of this page, in their order, by the names of `embedding`. data: what they read, by the id of its
    block; strict JSON, so a number that is not finite is a ValueError.
    """
    found = templates()
    css = Markup(found.get_template("page.css").render())
    names = (*embedding.ALWAYS, *scripts)
    return found.get_template(template).render(
        css=css,
        policy=embedding.policy((*embedding.FIRST, *names)),
        opening_scripts=embedding.scripts(embedding.FIRST),
        embedded=Markup("\n").join((embedding.data(data or {}), embedding.scripts(names))),
        **content,
    )


def templates() -> Environment:
    """The templates of all pages, with their filters; text is escaped."""
    loader = PackageLoader("precision_lab.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {name: getattr(wording, name) for name in FILTERS}
    return environment


def weights_text(checkpoint: Checkpoint) -> str:
    """Where the weights come from, with the notes of their source."""
    _, kind, about = wording_of_origin(checkpoint.weights, checkpoint.path)
    return f"{', '.join((kind, *checkpoint.notes))}: {about}"
