"""The origin of the weights of a run, and the words for it on the terminal and on pages."""

from __future__ import annotations

from typing import NamedTuple

TRAINED, SYNTHETIC, PUBLISHED, UNKNOWN = "trained", "synthetic", "published", "unknown"

LABEL = "_weights"
"""The key of model_index.json or config.json under which a checkpoint of this project states the origin."""


class Wording(NamedTuple):
    """A short phrase for a line of text; and for a page a title and a remark."""

    phrase: str
    title: str
    remark: str


_WORDINGS = {
    TRAINED: Wording(
        "trained weights, not the published ones",
        "Trained weights",
        "a checkpoint trained for this study, not the published model",
    ),
    SYNTHETIC: Wording(
        "generated, untrained weights",
        "Synthetic weights",
        "generated, untrained weights, whose results carry no meaning",
    ),
    PUBLISHED: Wording("published weights", "Published weights", "read from the repository of the publisher"),
}


_SHORT = {TRAINED: "weights trained by us", SYNTHETIC: "generated weights", PUBLISHED: "published weights"}


def short(weights: str) -> str:
    """The origin in three words, for badges, headings and tables."""
    return _SHORT.get(weights, "weights of unknown origin")


def wording(weights: str, path: str) -> Wording:
    """The words for the weights of a run; a label of somebody's own stands for itself.

    path: of the checkpoint, as the user gave it. It is named if the origin is unknown.
    """
    if weights in ("", UNKNOWN):
        read = f"read from {path}" if path else "the run does not say where they come from"
        return Wording(f"weights of unknown origin, {read}", "Weights of unknown origin", read)
    return _WORDINGS.get(weights, Wording(weights, "Weights", "the run does not say where they come from"))
