"""Writes a checkpoint with the weights of this experiment, for the laboratory's own commands.

python -m experiments.mflux_timestep.checkpoint --to DIR [--blocks 4]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from experiments.mflux_timestep.arms import NARROW, drawn
from precision_lab.synthetic import PRESETS, make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    parser.add_argument("--blocks", type=int, default=4)
    arguments = parser.parse_args()
    config = replace(NARROW, num_layers=arguments.blocks)
    make(replace(PRESETS["micro"], transformer=config), arguments.to)
    (file,) = (arguments.to / "transformer").glob("*.safetensors")
    mx.save_safetensors(str(file), dict(tree_flatten(drawn(config).parameters())), metadata={"format": "pt"})


if __name__ == "__main__":
    main()
