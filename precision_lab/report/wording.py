"""Numbers as a page shows them: three significant digits, units, and the reason beside a missing one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

MISSING = "—"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MINUS = "\u2212"
NARROW_SPACE = "\u202f"


def number(value: Any, digits: int = 3) -> str:
    """`value` with `digits` significant digits: 0.0163, 54.2, 3 020, 5.68×10⁷; text as it is, None as a dash."""
    if value is None:
        return MISSING
    if isinstance(value, bool | str):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if isinstance(value, int) and abs(value) < 1e7:
        return _grouped(f"{value:,}")
    exponent = math.floor(math.log10(abs(value)))
    if not -4 < exponent < 5:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}×10{str(int(power)).translate(SUPERSCRIPTS)}".replace("-", MINUS)
    return _grouped(f"{value:,.{max(digits - 1 - exponent, 0)}f}")


def _grouped(digits: str) -> str:
    """Thousands apart by a narrow space, a true minus sign."""
    return digits.replace(",", NARROW_SPACE).replace("-", MINUS)


def fixed(value: float | None, decimals: int) -> str:
    """`value` with a fixed number of decimals."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.{decimals}f}".replace("-", MINUS)


def interval(bounds: Sequence[float] | None, decimals: int | None = None) -> str:
    """`[low, high]` with three significant digits or as many decimals as stated, or a dash."""
    if not bounds:
        return MISSING
    low, high = (number(b) if decimals is None else fixed(b, decimals) for b in bounds)
    return f"[{low}, {high}]"


def reason(entry: Mapping[str, Any], key: str) -> str:
    """Why `entry[key]` is null, as the summary says it: `identical`, `nonfinite`; empty where it is a number."""
    return str(entry.get(f"{key}_reason") or "") if entry.get(key) is None else ""


def size(count: int | None) -> str:
    """Bytes in the nearest binary unit."""
    if count is None:
        return MISSING
    exponent = min(int(math.log2(max(count, 1)) // 10), 4)
    return f"{number(count / 1024**exponent)} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[exponent]}"


def dtype(value: Any) -> tuple[str, str]:
    """The dtype a variant computes in, and that of its weights where it is another (else empty)."""
    if not isinstance(value, Mapping):
        return (str(value) if value else MISSING), ""
    compute, weights = str(value.get("compute")), str(value.get("weights"))
    return compute, "" if weights == compute else f"weights {weights}"


def stream_scale(factor: float) -> str:
    """`stream x4096`, for a power of two by which the residual streams are multiplied; empty for 1."""
    if factor == 1:
        return ""
    return f"stream x{factor:.0f}" if 1 < factor < 1e7 else f"stream x2^{math.log2(factor):.0f}"


def breakable(name: str) -> Markup:
    """`name` for HTML, with leave to break a line after an underscore."""
    return Markup(escape(name).replace("_", Markup("_<wbr>")))


def moment(stamp: str | None) -> str:
    """An ISO 8601 time to the minute: `2026-03-02 09:14 UTC`; as it is where it is none."""
    try:
        time = datetime.fromisoformat(stamp or "")
    except ValueError:
        return stamp or ""
    return f"{time.astimezone(UTC) if time.tzinfo else time:%Y-%m-%d %H:%M}{' UTC' if time.tzinfo else ''}"


def address(site: Mapping[str, Any]) -> str:
    """A place in a run: `transformer_blocks.37 out.0, step 0, cond, prompt 1, seed 7`."""
    component = site.get("component", "transformer")
    prefix = "" if component == "transformer" else f"{component}:"
    port = "" if site.get("port") in (None, "out") else f" {site['port']}"
    parts = [f"{prefix}{site['site']}{port}"]
    parts += [f"step {site['step']}"] if site.get("step") is not None else []
    parts += [str(site["branch"])] if site.get("branch") else []
    parts += [
        f"{name} {site[key]}" for name, key in (("prompt", "prompt_id"), ("seed", "seed")) if site.get(key) is not None
    ]
    return ", ".join(parts)
