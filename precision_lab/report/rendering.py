"""What all pages share: their templates, figures inside the page, and the words for weights."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from precision_lab.record.manifest import Checkpoint
from precision_lab.record.origin import wording as wording_of_origin
from precision_lab.report import wording
from precision_lab.report.figures import style
from precision_lab.report.figures.style import Absent, Drawing

FILTERS = ("number", "fixed", "interval", "size", "moment", "breakable", "setting")
MEDIA = {"png": "image/png", "svg": "image/svg+xml"}


@dataclass(frozen=True)
class Figure:
    """A figure on the page: a data URI, or the reason for its absence."""

    title: str
    caption: str
    uri: str = ""


def embed(drawing: Drawing | Absent, folder: Path, prefix: str = "") -> Figure:
    """Writes the files of a figure into `folder`, and returns it for a page. prefix: of the names of the files."""
    if isinstance(drawing, Absent):
        return Figure(drawing.title, drawing.reason)
    png, svg = style.save(replace(drawing, name=f"{prefix}{drawing.name}"), folder)
    file = png if drawing.inline == "png" else svg
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return Figure(drawing.title, drawing.caption, f"data:{MEDIA[drawing.inline]};base64,{data}")


def render(template: str, **content: Any) -> str:
    """A page from one of the templates, with the style sheet as `css`."""
    loader = PackageLoader("precision_lab.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {name: getattr(wording, name) for name in FILTERS}
    css = Markup(environment.get_template("page.css").render())
    return environment.get_template(template).render(css=css, **content)


def weights_text(checkpoint: Checkpoint) -> str:
    """Where the weights come from, with the notes of their source."""
    _, kind, about = wording_of_origin(checkpoint.weights, checkpoint.path)
    return f"{', '.join((kind, *checkpoint.notes))}: {about}"
