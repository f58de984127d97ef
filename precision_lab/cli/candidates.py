"""The candidates of a search, from their nodes in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from precision_lab.cli.building import build
from precision_lab.cli.config import plain
from precision_lab.errors import InputError, shown
from precision_lab.lab.candidates import Candidate
from precision_lab.techniques.base import Technique

TO_COME = {
    "gguf": "q4_k",
    "q2_k": "affine2",
    "q3_k": "affine3",
    "q4_k_s": "q4_k",
    "q4_k_m": "q4_k",
    "q5_k_s": "q5_k",
    "q5_k_m": "q5_k",
    "iq4_nl": "q4_0",
    "fp4": "nf4",
    "int4": "affine4",
    "nunchaku": "svdquant",
    "awq": "affine4",
    "gptq": "affine4",
    "hqq": "affine4",
}
"""Formats that cannot be measured yet, and the candidate that is nearest to each in bits and grouping."""


def build_candidates(resolved: DictConfig, key: str = "candidate") -> list[Candidate]:
    """The candidates of a configuration, under a key of it. Raises InputError for a node that fits no technique."""
    found = []
    for name, node in plain(resolved[key]).items():
        if not isinstance(node, Mapping):
            raise InputError(f"{key}.{name}: expected a mapping with a _target_, got {shown(node)}")
        candidate = Candidate(name, node, make)
        candidate.technique(["**"])  # a node that describes no technique is an error before anything is loaded
        found.append(candidate)
    return found


def make(name: str, node: Mapping[str, Any]) -> Technique:
    """The technique that the filled node of a candidate describes."""
    technique: Technique = build(OmegaConf.create(dict(node)), Technique, f"candidate.{name}")
    return technique


def refused(name: str) -> str | None:
    """A message for the name of a format that cannot be measured yet; None for any other name."""
    known = name.lower().replace("-", "_")
    nearest = next((TO_COME[form] for form in TO_COME if known == form or known.startswith(f"{form}_")), None)
    return nearest and f"candidate {name}: this format cannot be measured yet. The nearest that can is {nearest}"
