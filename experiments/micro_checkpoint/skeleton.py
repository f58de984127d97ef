"""Writes the folder that training fills: configurations, tokenizer and synthetic weights of the right shapes.

    python -m experiments.micro_checkpoint.skeleton WORK

Writes WORK/checkpoint; like the training itself it needs no MLX.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from precision_lab.model.qwen_image.config import VAEConfig
from precision_lab.synthetic import PRESETS, make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    checkpoint = parser.parse_args().work / "checkpoint"
    make(replace(PRESETS["micro"], vae=VAEConfig(base_dim=8)), checkpoint)
    index = checkpoint / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_weights": "trained"}, indent=2) + "\n")


if __name__ == "__main__":
    main()
