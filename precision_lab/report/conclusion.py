"""The head of a page: the question that a run asks, and its answer in plain words, one sentence a claim."""

from __future__ import annotations

import math
from dataclasses import dataclass

from precision_lab.analysis.measures import METRICS
from precision_lab.record.summary import ClaimEntry
from precision_lab.report.figures.claim_forest import COUNTED
from precision_lab.report.view import View
from precision_lab.report.wording import number

ANSWERS = {"supported": "Yes", "refuted": "No", "inconclusive": "Undecided"}


@dataclass(frozen=True)
class Sentence:
    """A claim in a sentence. answer: the verdict in one word; evidence: effect, interval and what limits them."""

    id: str
    verdict: str
    answer: str
    text: str
    evidence: str


def question(view: View) -> str:
    """What the run asks of its variants."""
    count = sum(name != view.reference for name in view.variants)
    measured = [f"the {view.layout.result.title}"]
    if view.layout.picture:
        measured.append("the pictures")
    if view.latency is not None:
        measured.append("the time of a step")
    listed = " and ".join(filter(None, (", ".join(measured[:-1]), measured[-1])))
    baseline = "the baseline" if view.baseline == "baseline" else f"the baseline, {view.baseline}"
    return (
        f"How do {count} variant{'s' * (count != 1)} of {view.manifest.checkpoint.name} change {listed}, compared with "
        f"the reference ({view.manifest.reference.words}) and {baseline}?"
    )


def sentences(view: View) -> list[Sentence]:
    """One for each judged claim, in the order of the experiment."""
    claims = view.run.summary.claims if view.run.summary else ()
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
        parts.append(f"no interval: {claim.ci95_reason}")
    if claim.verdict_reason:
        parts.append(claim.verdict_reason)
    return ", ".join(parts)


def _effect(claim: ClaimEntry, value: float) -> str:
    if claim.relation in COUNTED:
        return f"{number(value)} value{'s' * (value != 1)}"
    unit = METRICS[claim.metric].unit if claim.metric in METRICS else ""
    if claim.bound is not None or unit == "dB":
        return f"{number(value)} {unit}".strip()
    return f"a factor of {number(value)}"


def drift(view: View) -> str:
    """Which variants drift least and most, for a run without claims; empty where no drift is known."""
    known = {
        name: float(value)
        for name in view.variants
        if name != view.reference and (value := view.entry(name).latent_rel_l2.value) is not None
        if math.isfinite(value)
    }
    if not known:
        return ""
    least, most = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    text = f"Of the variants, {least} drifts least from the reference (relative L2 {number(known[least])})"
    return text + (f", and {most} most ({number(known[most])})." if most != least else ".")
