"""Words and numbers as a page shows them: three significant digits, units, dtypes, addresses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from precision_lab.analysis.conclusion import MINUS as MINUS
from precision_lab.analysis.conclusion import MISSING as MISSING
from precision_lab.analysis.conclusion import NARROW_SPACE as NARROW_SPACE
from precision_lab.analysis.conclusion import SUPERSCRIPTS as SUPERSCRIPTS
from precision_lab.analysis.conclusion import number as number
from precision_lab.record.address import with_port
from precision_lab.record.layout import Layout
from precision_lab.record.summary import Dtypes

VERDICTS = ("refuted", "inconclusive", "supported")
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_NOT_IN_PORT = r"(?![\w.]*\))"


def fixed(value: float | None, decimals: int) -> str:
    """`value` with a fixed number of decimals."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.{decimals}f}".replace("-", MINUS)


def interval(bounds: Sequence[float] | None, decimals: int | None = None) -> str:
    """`[low, high]` with three significant digits, or with a number of decimals; a dash for no bounds."""
    if not bounds:
        return MISSING
    low, high = (number(b) if decimals is None else fixed(b, decimals) for b in bounds)
    return f"[{low}, {high}]"


def size(count: int | None) -> str:
    """Bytes in the nearest binary unit."""
    if count is None:
        return MISSING
    exponent = exponent_of(count)
    return f"{number(count / 1024**exponent)} {UNITS[exponent]}"


def exponent_of(count: int) -> int:
    """The index in UNITS, and the power of 1024, of the unit for a number of bytes."""
    return min(int(math.log2(max(count, 1)) // 10), len(UNITS) - 1)


def dtype(value: Dtypes) -> tuple[str, str]:
    """The dtype that a variant computes in, and that of its weights where it is another (else empty)."""
    return value.compute or MISSING, "" if value.weights == value.compute else f"weights {value.weights}"


def counted(verdicts: Iterable[str]) -> str:
    """How many of each verdict: `2 refuted, 3 supported`; empty without any."""
    found = list(verdicts)
    return ", ".join(f"{found.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in found)


def setting(value: Any) -> str:
    """The value of a setting as a configuration file writes it; a blank text and an absent value in words."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value)) or "none"
    return str(value).strip() or "blank"


def breakable(name: str) -> Markup:
    """`name` for HTML; a line may break after each underscore, slash and dot, but not in a number nor in the port
    that ends an address."""
    return Markup(re.sub(rf"([_/]|(?<!\d)\.(?=\w)|\.(?=[^\W\d])){_NOT_IN_PORT}", r"\1<wbr>", str(escape(name))))


def unbroken(text: str) -> str:
    """`text` in which no line breaks between a number and its unit or the word that it numbers: `seed 0`."""
    between = r"(?<=\d) (?=%|(?:dB|ms|s|bits?|[KMGT]?i?B)\b)|(?:(?<=\bstep)|(?<=\bprompt)|(?<=\bseed)) (?=\d)"
    return re.sub(between, "\N{NO-BREAK SPACE}", text)


def slug(text: str) -> str:
    """`text` as part of an id in HTML: lower-case letters, digits, `_`, `+` and single hyphens."""
    return re.sub(r"[^\w+]+", "-", text.lower()).strip("-") or "-"


def moment(stamp: str | None) -> str:
    """An ISO 8601 time to the minute: `2026-03-02 09:14 UTC`; text that is no such time stays as it is."""
    try:
        time = datetime.fromisoformat(stamp or "")
    except ValueError:
        return stamp or ""
    return f"{time.astimezone(UTC) if time.tzinfo else time:%Y-%m-%d %H:%M}{' UTC' if time.tzinfo else ''}"


def address(layout: Layout, component: str, site: str, port: str) -> str:
    """An array of a run: `transformer_blocks.37 (out.0)`."""
    return with_port(layout.address(component, site), port)


def place(
    layout: Layout,
    component: str,
    site: str,
    port: str,
    step: int | None = None,
    branch: str | None = None,
    prompt_id: int | None = None,
    seed: int | None = None,
) -> str:
    """An array at one moment of a run: `transformer_blocks.37 (out.0), step 0, cond, prompt 1, seed 7`."""
    numbers = {"step": step, "prompt": prompt_id, "seed": seed}
    words = {name: f"{name} {value}" for name, value in numbers.items() if value is not None}
    parts = (address(layout, component, site, port), words.get("step"), branch, words.get("prompt"), words.get("seed"))
    return ", ".join(filter(None, parts))
