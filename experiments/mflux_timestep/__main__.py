"""Measures how far bfloat16 is from fp32 in mflux's transformer, before and after one operation is mended.

    PYTHONPATH=.:MFLUX python -m experiments.mflux_timestep --to DIR [--full-width]

It writes DIR/numbers.json, and the figure as DIR/mflux_timestep.png and .svg. `--full-width` repeats the two blocks of
the benchmark on a GPU at their full width (4 GB of memory).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from experiments.mflux_timestep.arms import NARROW, arms, drawn, first_blocks, inputs_of
from experiments.mflux_timestep.figure import draw
from precision_lab.device.environment import set_numeric_switches
from precision_lab.instrument.replica import replica
from precision_lab.model.qwen_image.checkpoint import Checkpoint, locate
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.timestep import frequencies
from precision_lab.numerics.metrics import compare
from precision_lab.record.files import write_json
from precision_lab.report.figures import style

DEPTHS = (1, 2, 5, 15, 30, 60)
HALF, A_TENTH = 0.5, 0.1
EXACT = tuple(k / 8 for k in range(1, 9))
"""Timesteps that bfloat16 represents."""
ROUNDED = tuple(float(np.float32(k / 8 - 1 / 37)) for k in range(1, 9))
"""Timesteps that it rounds, as it does most of a schedule."""
SIDE, TEXT_TOKENS = 96, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    parser.add_argument("--full-width", action="store_true")
    arguments = parser.parse_args()
    set_numeric_switches()
    narrow, (trained, config) = drawn(NARROW), _trained()
    numbers: dict[str, Any] = {
        "frequencies": _frequencies(),
        "embedding": {name: _embedding(model) for name, model in (("drawn", narrow), ("trained", trained))},
        "depth": {str(depth): _at(first_blocks(narrow, depth), NARROW, [HALF])[str(HALF)] for depth in DEPTHS},
        "timesteps": {
            name: {kind: _at(model, of, steps) for kind, steps in (("exact", EXACT), ("rounded", ROUNDED))}
            for name, model, of in (("drawn", narrow, NARROW), ("trained", trained, config))
        },
    }
    if arguments.full_width:
        full = TransformerConfig(num_layers=2)
        numbers["full_width"] = _at(drawn(full), full, [HALF])[str(HALF)]
    arguments.to.mkdir(parents=True, exist_ok=True)
    write_json(arguments.to / "numbers.json", numbers)
    with style.theme():
        style.save(draw(numbers), arguments.to)
    print(json.dumps({key: numbers[key] for key in ("depth", "frequencies")}, indent=1))


def _at(model: Transformer, config: TransformerConfig, timesteps: Sequence[float]) -> dict[str, dict[str, float]]:
    """rel_l2 of each arm to the fp32 result, by timestep."""
    found = {}
    with arms(model, config, inputs_of(config, SIDE, TEXT_TOKENS)) as forwards:
        for timestep in timesteps:
            reference = forwards["reference"](timestep)
            others = {name: forward for name, forward in forwards.items() if name != "reference"}
            found[str(timestep)] = {
                name: compare(forward(timestep), reference).to_json()["rel_l2"] for name, forward in others.items()
            }
    return found


def _trained() -> tuple[Transformer, TransformerConfig]:
    """The embedded checkpoint, in bfloat16."""
    checkpoint = Checkpoint(locate("package://micro"))
    model = checkpoint.transformer(mx.bfloat16)
    model.set_dtype(mx.bfloat16)
    return model, checkpoint.transformer_config()


def _embedding(model: Transformer) -> dict[str, dict[str, float]]:
    """How far rounded frequencies move the sinusoids and their embedding, in fp32: rel. L2 by timestep.

    "channels": the rms of the weights that read the angles which move by more than a tenth of a rad at timestep 1/2,
    relative to that of the others.
    """
    wide: Transformer = replica(model)
    wide.set_dtype(mx.float32)
    embed, exact = wide.time_text_embed.timestep_embedder, frequencies()
    rounded = exact.astype(mx.bfloat16).astype(mx.float32)
    found: dict[str, dict[str, float]] = {"sinusoids": {}, "embedding": {}}
    for timestep in EXACT:
        before, after = (_sinusoids(timestep, table) for table in (rounded, exact))
        for name, pair in (("sinusoids", (before, after)), ("embedding", (embed(before), embed(after)))):
            found[name][str(timestep)] = compare(*(np.array(array) for array in pair)).to_json()["rel_l2"]
    moved = np.tile(np.abs(1000 * HALF * np.array(rounded - exact)) > A_TENTH, 2)
    weights = np.array(embed.linear_1.weight)
    rms = [float(np.sqrt((weights[:, mask] ** 2).mean())) for mask in (moved, ~moved)]
    return found | {"channels": {"ratio": rms[0] / rms[1], "moved": int(moved.sum())}}


def _sinusoids(timestep: float, table: mx.array) -> mx.array:
    angles = 1000 * timestep * table[None]
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


def _frequencies() -> dict[str, float]:
    """How far the angles move, in rad at timestep 1/2, if the frequencies are rounded to bfloat16."""
    exact = np.exp(-np.log(10_000) * np.arange(128) / 128)
    rounded = np.array(mx.array(exact.astype(np.float32)).astype(mx.bfloat16).astype(mx.float32))
    moved = np.abs(1000 * HALF * (rounded - exact))
    return {"largest_rad": float(moved.max()), "above_a_tenth": int((moved > A_TENTH).sum())}


if __name__ == "__main__":
    main()
