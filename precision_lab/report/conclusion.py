"""The head of a page: the question that a run asks, and its answer in plain words, one sentence a claim."""

from __future__ import annotations

from precision_lab.analysis import conclusion
from precision_lab.analysis.conclusion import Sentence
from precision_lab.analysis.conclusion import evidence as evidence
from precision_lab.report.view import View


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
    return conclusion.sentences(view.run.summary.claims if view.run.summary else ())


def drift(view: View) -> str:
    """Which variants drift least and most, for a run without claims; empty where no drift is known."""
    return conclusion.drift({name: view.entry(name) for name in view.variants}, view.reference)
