"""A small finished run made from formulas: 2 variants, 3 sites in 2 steps and a text encoder, 2 pinned cases."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from precision_lab.analysis.gate.entry import Entry, learn
from precision_lab.numerics.sketch import SKETCH_COLUMNS, sketch
from precision_lab.record import tables
from precision_lab.record.manifest import PinnedCases, VariantEntry
from precision_lab.record.run import Run
from tests import fabricated

LAYOUT = fabricated.QWEN_IMAGE
SITES = ("img_in", "transformer_blocks.0", "proj_out")
VARIANTS = {"baseline": "bfloat16", "upcast": "bfloat16"}
SIZE = 48


def moments():
    """(component, site, branch, step, block) in order of execution."""
    yield "text_encoder", "norm", "cond", None, None
    for step in range(2):
        for branch in ("cond", "uncond"):
            for site in SITES:
                yield "transformer", site, branch, step, 0 if "blocks" in site else None
    yield "vae", "decoder", None, None, None


def positions():
    for order, (component, site, branch, step, block) in enumerate(moments()):
        where = {"branch": branch, "step": step, "sigma": None if step is None else 1 - step / 2}
        yield where | {
            "component": component,
            "site": site,
            "port": "out",
            "stream": "img",
            "block": block,
            "order": order,
        }


def activations(prompts=2, seeds=2, rng_seed=0, spread=0.1, variants=VARIANTS):
    """amax about 2^3, rms about 2^0, each case off by a normal number of `spread` bits."""
    rng = np.random.default_rng(rng_seed)
    rows = []
    for variant, dtype in {"reference": "float32", **variants}.items():
        for prompt in range(prompts):
            for seed in range(seeds):
                for position in positions():
                    bits = spread * rng.standard_normal(2)
                    rows.append(
                        {"variant": variant, "prompt_id": prompt, "seed": seed, **position, "dtype": dtype}
                        | {"shape": f"1x{SIZE}", "numel": SIZE, "amax": 2 ** (3 + bits[0]), "rms": 2 ** bits[1]}
                        | {"num_nan": 0, "num_inf": 0}
                    )
    return pd.DataFrame(rows)


def drift(prompts=2, seeds=2, rng_seed=1, spread=0.1):
    rng = np.random.default_rng(rng_seed)
    rows = []
    for variant in VARIANTS:
        for prompt in range(prompts):
            for seed in range(seeds):
                for position in positions():
                    step = position["step"] or 0
                    rel = 2 ** (-8 + 3 * step + spread * rng.standard_normal())
                    where = {key: value for key, value in position.items() if key != "sigma"}
                    rows.append(
                        {
                            "variant": variant,
                            "reference": "reference",
                            "mode": "free",
                            "prompt_id": prompt,
                            "seed": seed,
                        }
                        | {**where, "rel_l2": rel, "num_nonfinite": 0}
                    )
    return pd.DataFrame(rows)


def arrays(case, order):
    """The array that a pinned case has at a position."""
    return np.random.default_rng([len(case), order]).standard_normal((6, 8)).astype(np.float32)


def sketches(change=None, noise=1e-5):
    """change: (case, position, array) -> another array, of the reference alone."""
    rows = []
    for variant in ("reference", "equivalent") if noise else ("reference",):
        for case in ("odd", "square"):
            for position in positions():
                x = arrays(case, position["order"])
                if variant == "equivalent":
                    x = x * np.float32(1 + noise)
                elif change is not None:
                    x = change(case, position, x)
                found = sketch(x)
                rows.append(
                    {"variant": variant, "case": case, "prompt": "a", "seed": 0, "height": 32, "width": 32, **position}
                    | {"dtype": str(x.dtype), "shape": "x".join(map(str, x.shape)), "numel": x.size}
                    | {"num_nonfinite": found.num_nonfinite, "rms": found.rms}
                    | dict(zip(SKETCH_COLUMNS, found.projections, strict=True))
                )
    return pd.DataFrame(rows)


def latency(seconds=1.0, rounds=8, rng_seed=2):
    rng = np.random.default_rng(rng_seed)
    return pd.DataFrame(
        {"variant": variant, "round": turn, "order": order, "what": "step", "peak_memory_bytes": 1_000_000}
        | {"seconds": seconds * (1 + order / 10) * (1 + 0.01 * rng.random())}
        for turn in range(rounds)
        for order, variant in enumerate(VARIANTS)
    )


PINNED = PinnedCases(case={"steps": 2}, cases={"odd": {"seed": 1}}, sites=["**"], noise_floor=True, fingerprint="p")


def manifest(**changed):
    """The manifest of the run; `changed` replaces some of its fields."""
    given = {
        "experiment": "small",
        "environment": replace(fabricated.ENVIRONMENT, commit="c0ffee", dirty=False),
        "checkpoint": replace(fabricated.CHECKPOINT, settings={"inflate": 1}),
        "case": {"steps": 2, "guidance_scale": 4.0, "negative_prompt": " ", "height": 32},
        "variants": {name: VariantEntry(dtype, process={"tf32": False}) for name, dtype in VARIANTS.items()},
        "layout": LAYOUT,
        "command": ["python"],
        "prompts": ["a", "b"],
        "seeds": [0, 1],
        "pinned": PINNED,
    }
    return fabricated.manifest(**given | changed)


CONFIG = {
    "variants": {name: {"technique": {}} for name in VARIANTS},
    "probe": {"range": {"sites": ["**"]}},
    "drift": {},
}


def fabricate(run: Path, **given) -> Run:
    """Writes the run; `given` replaces tables by name, and the manifest."""
    run.mkdir(parents=True)
    made = {"activations": activations, "drift": drift, "sketches": sketches, "latency": latency}
    for name, make in made.items():
        frame = given.get(name, make if name not in given else None)
        frame = frame() if callable(frame) else frame
        if frame is not None:
            tables._file(tables.merged_path(Path(), name), tables._typed(name, frame)).write(run)
    given.get("manifest", manifest()).write(run)
    (run / "config.yaml").write_text(json.dumps(CONFIG))
    return Run.open(run)


@cache
def learned() -> Entry:
    """What is learned from the run as it is; not to be changed."""
    with TemporaryDirectory() as folder:
        return learn(fabricate(Path(folder) / "run"), CONFIG)
