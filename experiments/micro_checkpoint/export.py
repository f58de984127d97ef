"""Folds the trained transformer's factors into its weights, rounds once to bf16 and completes the checkpoint.

    python -m experiments.micro_checkpoint.export WORK --to precision_lab/checkpoints/micro

Rejects a result that diffusers computes differently, and weights outside float16's range. The VAE and the text encoder
were rounded in their own stages. The vision tower is that of the skeleton, because text-to-image never runs it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from huggingface_hub import save_torch_state_dict

from experiments.micro_checkpoint import growth, state, verify
from experiments.micro_checkpoint.model import stack, unstack

TOLERANCE = 3e-4
"""Allowed relative L2 in fp32 between the training's forward and diffusers' on folded weights: rounding in 60 blocks,
where massive channels dominate every LayerNorm."""

GRIDS = ((8, 8), (9, 7))
FLOAT16_MAX = 65504.0
SHARD_BYTES = 12_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    checkpoint = options.work / "checkpoint"
    saved = state.load(options.work / "transformer.safetensors")
    if saved is None:
        raise SystemExit(f"{options.work}: no transformer.safetensors, train it first")
    model = QwenImageTransformer2DModel.from_pretrained(checkpoint / "transformer", torch_dtype=torch.float32)
    parameters = {name: saved[0][name].float() for name in stack(model.state_dict())}
    factor = saved[1]["growth"]
    difference = max(verify.difference(model, parameters, factor, grid, seed) for seed, grid in enumerate(GRIDS))
    print(f"training's forward against diffusers' in fp32: relative L2 {difference:.2e}")
    folded = unstack(growth.fold(parameters, factor))
    sizes = {name: tensor.abs().max().item() for name, tensor in folded.items()}
    name, largest = max(sizes.items(), key=lambda pair: pair[1])
    print(f"largest weight {largest:.0f} in {name}")
    if not (difference <= TOLERANCE and largest < FLOAT16_MAX):  # also rejects NaN
        raise SystemExit("not exported")
    rounded = {name: tensor.bfloat16().contiguous() for name, tensor in folded.items()}
    folder = checkpoint / "transformer"
    for file in folder.glob("diffusion_pytorch_model*"):
        file.unlink()
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    save_torch_state_dict(rounded, folder, filename_pattern=pattern, max_shard_size=SHARD_BYTES)
    shutil.copy(Path(__file__).parent / "MODEL_CARD.md", checkpoint / "README.md")
    shutil.rmtree(options.to, ignore_errors=True)
    shutil.copytree(checkpoint, options.to)
    for file in options.to.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files readable only by their owner


if __name__ == "__main__":
    main()
