"""A named pair for the two residual streams of the transformer."""

from __future__ import annotations

from typing import Any, NamedTuple


class Streams(NamedTuple):
    """One value for the image tokens and one for the text tokens."""

    img: Any
    txt: Any
