"""Runs in memory, from tables that a test makes up; everything else is by default that of a small Qwen-Image run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.model.qwen_image.layout import layout
from precision_lab.record.layout import Layout, Result
from precision_lab.record.manifest import Checkpoint, Environment, Manifest, VariantEntry
from precision_lab.record.run import Run, Tables

QWEN_IMAGE = layout(4)
PLAIN = Layout(components=("net",), default="net", result=Result("net:head"))
"""A model without blocks, streams, branches or pictures."""

LANGUAGE_MODEL = Layout(
    components=("model",),
    default="model",
    result=Result("model:.", "logits", distribution=True),
    blocks=("model:layers.*",),
    depth=2,
)
"""A model with blocks and one unnamed stream, whose steps leave logits."""

ENVIRONMENT = Environment(device="a CPU", backend="cpu", mlx="0.32.4", cores=2, os="an OS", blas="a BLAS")
CHECKPOINT = Checkpoint(name="micro", path="there", fingerprint="f1", weights="trained")


def manifest(
    variants: Iterable[str] | Mapping[str, VariantEntry] = ("baseline",),
    layout: Layout = QWEN_IMAGE,
    claims: Sequence[Mapping[str, Any]] = (),
    **changed: Any,
) -> Manifest:
    """The manifest of a complete run with these variants, by name or as entries, beside the reference."""
    named = dict(variants) if isinstance(variants, Mapping) else {name: VariantEntry("bfloat16") for name in variants}
    entries = {"reference": VariantEntry("float32"), **named}
    given: dict[str, Any] = {
        "status": "complete",
        "experiment": "fabricated",
        "environment": ENVIRONMENT,
        "checkpoint": CHECKPOINT,
        "case": {"steps": 2},
        "baseline": next(iter(named), "reference"),
        "prompts": ["a"],
        "seeds": [0],
        "latency_margin": 0.05,
        "finished": "2026-01-02T03:04:05+00:00",
    }
    return Manifest(layout=layout, variants=entries, claims=claims, **given | changed)


def run_of(
    tables: Mapping[str, pd.DataFrame],
    variants: Iterable[str] | Mapping[str, VariantEntry] = ("baseline",),
    path: Path = Path("nowhere"),
    **about: Any,
) -> Run:
    """A run with these tables, by name; `about` is that of `manifest`. Its folder need not exist."""
    return Run(path, manifest(variants, **about), Tables.of(tables))
