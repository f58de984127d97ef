"""What a run found in plain words, one sentence a claim: for the page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from precision_lab.analysis.measures import METRICS
from precision_lab.record.summary import ClaimEntry, VariantSummary

ANSWERS = {"supported": "Yes", "refuted": "No", "inconclusive": "Undecided"}


COUNTED = ("zero", "nonzero")
"""The relations of claims that count values."""

MISSING = "—"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MINUS = "\u2212"
NARROW_SPACE = "\u202f"


@dataclass(frozen=True)
class Sentence:
    """A claim in a sentence. answer: the verdict in one word; evidence: effect, interval and what limits them."""

    id: str
    verdict: str
    answer: str
    text: str
    evidence: str


def sentences(claims: Iterable[ClaimEntry]) -> list[Sentence]:
    """One for each judged claim, in the order of the experiment."""
    return [
        Sentence(
            claim.id,
            claim.verdict,
            ANSWERS.get(claim.verdict, claim.verdict),
            claim.text.rstrip("."),
            evidence(claim),
        )
        for claim in claims
    ]


def evidence(claim: ClaimEntry) -> str:
    """`a factor of 18.5, 95 % interval 14.6 to 23.4`; or why there is no number."""
    if claim.effect.value is None:
        return claim.effect.reason or claim.verdict_reason or "not measured"
    parts = [_effect(claim, float(claim.effect.value))]
    if claim.ci95:
        parts.append(f"95\u00a0% interval {number(claim.ci95[0])} to {number(claim.ci95[1])}")
    elif claim.relation not in COUNTED and claim.ci95_reason:
        parts.append(f"no interval ({claim.ci95_reason})")
    if claim.verdict_reason and not (len(parts) > 1 and claim.verdict_reason == claim.ci95_reason):
        parts.append(claim.verdict_reason)
    return ", ".join(parts)


def _effect(claim: ClaimEntry, value: float) -> str:
    if claim.relation in COUNTED:
        return f"{number(value)} value{'s' * (value != 1)}"
    unit = METRICS[claim.metric].unit if claim.metric in METRICS else ""
    if claim.bound is not None or unit == "dB":
        return f"{number(value)} {unit}".strip()
    return f"a factor of {number(value)}"


def drift(variants: Mapping[str, VariantSummary], reference: str) -> str:
    """Which variants drift least and most, for a run without claims; empty where no drift is known."""
    known = {
        name: float(value)
        for name, entry in variants.items()
        if name != reference and (value := entry.latent_rel_l2.value) is not None
        if math.isfinite(value)
    }
    if not known:
        return ""
    least, most = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    text = f"Of the variants, {least} drifts least from the reference (relative L2 {number(known[least])})"
    return text + (f", and {most} most ({number(known[most])})." if most != least else ".")


def number(value: Any, digits: int = 3) -> str:
    """`value` with `digits` significant digits: 0.0163, 54.2, 3 020, 5.68×10⁷; text stays as it is, None is a dash."""
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
    """The digits with narrow spaces between thousands, and a true minus sign."""
    return digits.replace(",", NARROW_SPACE).replace("-", MINUS)
