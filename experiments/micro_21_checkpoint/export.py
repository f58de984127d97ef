"""Rounds the trained transformer once to bf16 and completes the checkpoint.

    python -m experiments.micro_21_checkpoint.export WORK --to precision_lab/checkpoints/micro_21

Rejects a result that diffusers computes differently. The VAE and the text encoder were rounded in their own stages.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from diffusers import QwenImage21Transformer2DModel
from huggingface_hub import save_torch_state_dict

from experiments.micro_21_checkpoint import verify
from experiments.micro_21_checkpoint.transformer import trained
from experiments.micro_checkpoint.model import unstack

TOLERANCE = 3e-4
"""Allowed relative L2 in fp32 between the training's forward and diffusers': the rounding of 32 blocks."""

GRIDS = ((8, 8), (6, 10))
SHARD_BYTES = 5_000_000
"""Two shards, so that their index is read too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    checkpoint = options.work / "checkpoint"
    folder = checkpoint / "transformer"
    parameters = trained(options.work)
    config = QwenImage21Transformer2DModel.load_config(folder)
    model = QwenImage21Transformer2DModel.from_config(config).float()
    difference = max(verify.difference(model, parameters, grid, seed) for seed, grid in enumerate(GRIDS))
    print(f"training's forward against diffusers' in fp32: relative L2 {difference:.2e}")
    tensors = unstack(parameters)
    name, largest = max(((n, t.abs().max().item()) for n, t in tensors.items()), key=lambda pair: pair[1])
    print(f"largest weight {largest:.1f} in {name}")
    if not difference <= TOLERANCE:  # also rejects NaN
        raise SystemExit("not exported")
    for file in folder.glob("diffusion_pytorch_model*"):
        file.unlink()
    rounded = {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    save_torch_state_dict(rounded, folder, filename_pattern=pattern, max_shard_size=SHARD_BYTES)
    card = Path(__file__).parent / "MODEL_CARD.md"
    if card.exists():
        shutil.copy(card, checkpoint / "README.md")
    shutil.rmtree(options.to, ignore_errors=True)
    shutil.copytree(checkpoint, options.to)
    for file in options.to.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files readable only by their owner


if __name__ == "__main__":
    main()
