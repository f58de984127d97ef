"""A badge: the verdicts of a run as a small SVG, and as the JSON of an endpoint of shields.io.

Nothing in it refers to a network or to a font that may be missing. The words say what the colour says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import escape
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from precision_lab.errors import inline
from precision_lab.record.files import write_text
from precision_lab.record.gate import GateVerdict
from precision_lab.record.manifest import Checkpoint, Manifest
from precision_lab.record.origin import short
from precision_lab.record.summary import ClaimEntry
from precision_lab.report.wording import counted

SVG, JSON = "badge.svg", "badge.json"
GREEN, ORANGE, RED, GREY = "#00664b", "#9a5200", "#a63c00", "#4d5257"
"""For white text, with a contrast of at least 4.5."""

_LABEL = "#333333"
_SIZE = 11  # pixels; the font of the width is that of matplotlib, as wide as Verdana
_PAD = 7
_HEIGHT = 20


@dataclass(frozen=True)
class Badge:
    """Two words side by side; the colour is that of the right one. title: for readers who do not see it."""

    label: str
    message: str
    colour: str

    @property
    def title(self) -> str:
        return f"{self.label}: {self.message}"


def of_run(
    manifest: Manifest, claims: Sequence[ClaimEntry], reasons: Sequence[str], judged: GateVerdict | None = None
) -> Badge:
    """The badge of a run. reasons: of exit code 1. judged: the verdict of a gate on it.

    Red: exit code 1, or a gate that failed; grey: a run that is not complete, or without a verdict; orange: a claim is
    refuted or inconclusive; green: all are supported.
    """
    badge = of_claims(manifest.experiment, manifest.checkpoint, claims)
    parts, colour = [badge.message], badge.colour
    if judged is not None:
        parts.insert(0, f"gate {judged.word}")
        colour = GREEN if judged.passed and not claims else colour
    if manifest.status != "complete":
        parts.insert(0, manifest.status)
        colour = GREY
    if reasons or (judged is not None and not judged.passed):
        parts[:0] = ["exit code 1"] if reasons else []
        colour = RED
    return Badge(badge.label, ", ".join(parts), colour)


def of_claims(experiment: str, checkpoint: Checkpoint, claims: Sequence[ClaimEntry]) -> Badge:
    """The badge of verdicts alone, with the origin of the weights."""
    verdicts = [claim.verdict for claim in claims]
    others = set(verdicts) - {"supported"}
    colour = GREY if not verdicts else ORANGE if others else GREEN
    return Badge(inline(experiment, 40), f"{counted(verdicts) or 'no claims'} ({short(checkpoint.weights)})", colour)


def write(badge: Badge, folder: Path) -> tuple[Path, Path]:
    """Writes badge.svg and badge.json into a folder; returns their paths. The same badge gives the same bytes."""
    write_text(folder / SVG, svg(badge))
    write_text(folder / JSON, endpoint(badge))
    return folder / SVG, folder / JSON


def endpoint(badge: Badge) -> str:
    """The JSON of an endpoint of shields.io, schema version 1."""
    content = {"schemaVersion": 1, "label": badge.label, "message": badge.message, "color": badge.colour}
    return json.dumps(content, indent=2) + "\n"


def svg(badge: Badge) -> str:
    """The picture, 20 pixels high. Its text has a fixed length, whatever font the reader has."""
    widths = [_width(text) + 2 * _PAD for text in (badge.label, badge.message)]
    total, left = sum(widths), widths[0]
    title = escape(badge.title)
    texts = "".join(
        f'<text x="{x}" y="14" textLength="{width - 2 * _PAD}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>\n'
        for x, width, text in ((_PAD, left, badge.label), (left + _PAD, widths[1], badge.message))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{_HEIGHT}" '
        f'viewBox="0 0 {total} {_HEIGHT}" role="img" aria-label="{title}">\n'
        f"<title>{title}</title>\n"
        f'<clipPath id="corners"><rect width="{total}" height="{_HEIGHT}" rx="3"/></clipPath>\n'
        f'<g clip-path="url(#corners)">\n'
        f'<rect width="{left}" height="{_HEIGHT}" fill="{_LABEL}"/>\n'
        f'<rect x="{left}" width="{widths[1]}" height="{_HEIGHT}" fill="{badge.colour}"/>\n'
        "</g>\n"
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,Geneva,sans-serif" font-size="{_SIZE}">\n'
        f"{texts}"
        "</g>\n"
        "</svg>\n"
    )


def _width(text: str) -> int:
    path = TextPath((0, 0), f"{text}.", size=_SIZE, prop=FontProperties(family="DejaVu Sans"))
    return round(float(path.get_extents().width))
