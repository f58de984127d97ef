"""Writes the trained adapter as a file of diffusers.

python -m experiments.micro_lightning.export WORK --to precision_lab/checkpoints/micro_lightning
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.micro_checkpoint import state
from experiments.micro_lightning.student import Base, export
from experiments.micro_lightning.teacher import CHECKPOINT

NAME = "pytorch_lora_weights.safetensors"
LARGEST = 2 << 20
"""Bytes of the file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    options = parser.parse_args()
    saved = state.load(options.work / "adapter.safetensors")
    if saved is None:
        raise SystemExit("nothing trained yet")
    tensors, numbers = saved
    adapter = {name: tensor for name, tensor in tensors.items() if not name.startswith(state.MOMENTS)}
    path = options.to / NAME
    linears = export(Base.load(options.checkpoint), adapter, path)
    size = path.stat().st_size
    print(f"{path}: {linears} linears, {size} bytes, step {numbers['step']:.0f} of {numbers['steps']:.0f}")
    if size > LARGEST:
        raise SystemExit(f"{path}: {size} bytes, expected at most {LARGEST}")


if __name__ == "__main__":
    main()
