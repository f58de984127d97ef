"""Run folders of subjects that are not Qwen-Image, written from formulas: no model, no measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.record.address import split_address
from precision_lab.record.columns import Column
from precision_lab.record.layout import Layout, Result, Stream
from precision_lab.record.manifest import Checkpoint, Manifest, VariantEntry
from precision_lab.record.summary import Dtypes, Quantity, Summary, VariantSummary
from tests.report.fabricated_run import environment, write_table

PERCEPTRON = Layout(components=("net",), default="net", result=Result("net:head", "signal"))
"""One component, and nothing else that a layout may name."""

LANGUAGE = Layout(
    components=("decoder",),
    default="decoder",
    result=Result("decoder:lm_head", "logits", distribution=True),
    blocks=("layers.*",),
    depth=8,
    streams={"hidden": Stream("hidden stream", port="out", entry="embed")},
    adds={"attention": "layers.*.mixed", "feed-forward": "layers.*.fed"},
    exits=("norm",),
)
"""One stream over blocks, and a result that is a distribution; steps have no level and no branches."""

THREE = replace(
    LANGUAGE,
    result=Result("decoder:head", "prediction"),
    streams={name: Stream(f"{name} stream", port=f"out.{at}") for at, name in enumerate(("audio", "video", "caption"))},
    branches={"guided": "with the condition", "free": "without it"},
    level="time t",
)
"""Three streams, two branches and a level."""

VARIANTS = {"reference": "float32", "baseline": "bfloat16", "coarse": "bfloat16"}
ERRORS = {"baseline": 2e-3, "coarse": 3e-2}


def fabricate(run: Path, layout: Layout, steps: int = 6, seeds: Sequence[int] = (0, 1)) -> Path:
    """Writes a complete run of a subject with `layout` into `run`, without pictures or timings, and returns it."""
    run.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for table, rows in (
        ("activations", _activations(rng, layout, steps, seeds)),
        ("drift", _drift(layout, steps, seeds)),
    ):
        write_table(run, table, pd.DataFrame(list(rows)))
    (run / "config.yaml").write_text("exp: foreign\n")
    _manifest(layout, steps, seeds).write(run)
    _summary(layout).write(run)
    return run


def _moments(layout: Layout, steps: int, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    for variant in VARIANTS:
        for seed in seeds:
            for step in range(steps):
                for branch in layout.branches or (None,):
                    sigma = 1 - step / steps if layout.level else None
                    case = {"variant": variant, "prompt_id": 0, "seed": seed}
                    yield case | {"branch": branch, "step": step, "sigma": sigma}


def _activations(
    rng: np.random.Generator, layout: Layout, steps: int, seeds: Sequence[int]
) -> Iterator[dict[str, Any]]:
    for moment in _moments(layout, steps, seeds):
        for place, amax in _arrays(layout):
            row = {"dtype": VARIANTS[moment["variant"]], "shape": "1x8", "numel": 8, "num_nan": 0, "num_inf": 0}
            amax *= rng.uniform(0.9, 1.1) * (1 + 0.1 * moment["step"])
            yield moment | place | row | {"amax": amax, "headroom_bits_float16": np.log2(65504 / amax)}
        for place, share in _contributions(layout):
            yield moment | place | {"final_share": share}


def _arrays(layout: Layout) -> Iterator[tuple[dict[str, Any], float]]:
    component, site = split_address(layout.result.address, layout.default)
    outside = {"component": layout.default, "port": "out", "stream": "-", "block": None}
    for block in range(layout.depth):
        for name, stream in layout.streams.items():
            place = {"component": layout.default, "site": f"layers.{block}", "port": stream.port, "stream": name}
            yield place | {"block": block}, 3.0 * 2.0**block
    ends = [stream.entry for stream in layout.streams.values() if stream.entry] + list(layout.exits)
    for end in ends:
        yield outside | {"site": end}, 2.0
    yield outside | {"component": component, "site": site}, 12.0


def _contributions(layout: Layout) -> Iterator[tuple[dict[str, Any], float]]:
    """Shares that add up to 1: an entry, and two parts of each block."""
    for name in layout.streams:
        place = {"component": layout.default, "port": "out", "stream": name}
        yield place | {"site": f"embed_{name}", "block": None}, 0.1
        for block in range(layout.depth):
            for part in ("mixed", "fed"):
                own = {"site": f"layers.{block}.{part}", "block": block}
                yield place | own, 0.45 / layout.depth


def _drift(layout: Layout, steps: int, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    component, site = split_address(layout.result.address, layout.default)
    result = {"component": component, "site": site, "port": "out", "stream": "-", "block": None}
    for moment in _moments(layout, steps, seeds):
        if moment["variant"] == "reference":
            continue
        del moment["sigma"]
        error = ERRORS[moment["variant"]] * (1 + moment["step"]) * (1 + 0.1 * moment["seed"])
        for mode, factor in (("free", 1.0), ("teacher", 0.4)):
            scope = moment | {"mode": mode, "reference": "reference"}
            yield scope | result | {"branch": None} | _errors(error * factor, layout)
            for place, _ in _arrays(layout):
                if place["block"] is not None:
                    yield scope | place | _errors(error * factor * (1 + place["block"]), None)


def _errors(rel: float, layout: Layout | None) -> dict[str, Any]:
    kl = {"kl": rel**2 / 2} if layout and layout.result.distribution else {}
    return {"rel_l2": rel, "num_nonfinite": 0} | kl


def _manifest(layout: Layout, steps: int, seeds: Sequence[int]) -> Manifest:
    weights = Checkpoint("tiny", "models/tiny", "sha256:0", "synthetic", settings={"bits": 4, "tied": True})
    return Manifest(
        status="complete",
        experiment="foreign",
        environment=environment(),
        checkpoint=weights,
        layout=layout,
        case={"steps": steps, "temperature": None, "stop": ["a", "b"]},
        baseline="baseline",
        variants={name: VariantEntry(dtype) for name, dtype in VARIANTS.items()},
        prompts=["once upon a time"],
        seeds=list(seeds),
        latency_margin=0.05,
        columns={"activations": [Column("kurtosis", unit="1", meaning="fourth standardised moment"), Column("amax")]},
    )


def _summary(layout: Layout) -> Summary:
    def entry(name: str, dtype: str) -> VariantSummary:
        error = ERRORS.get(name, 0.0)
        metrics = {"kl": Quantity(error**2), "perplexity_ratio": Quantity(None, "one token")}
        return VariantSummary(
            dtype=Dtypes("as stored", dtype),
            techniques=(),
            error=None,
            expect="any",
            expectation_met=True,
            amax_final=Quantity(400.0) if layout.streams else Quantity(None, "not recorded"),
            latent_rel_l2=Quantity(error),
            psnr_db=Quantity(None, "no picture"),
            ssim=Quantity(None, "no picture"),
            num_nonfinite=Quantity(0),
            first_nonfinite=None,
            near_misses=None,
            latency=None,
            peak_memory_bytes=Quantity(None, "not timed"),
            metrics=metrics if layout.result.distribution else {},
        )

    entries = {name: entry(name, dtype) for name, dtype in VARIANTS.items()}
    return Summary("foreign", "reference", entries, weights="synthetic")
