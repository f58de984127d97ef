"""Trains the text encoder: the language body of Qwen3-VL, two layers of width 64, on the captions of the world.

    python -m experiments.micro_21_checkpoint.text_encoder WORK

The objectives are those of the micro checkpoint (see its text_encoder.py). The states that the transformer reads,
before the final norm, give the attributes; the next token is predicted after that norm, as in any language model.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from experiments.micro_21_checkpoint import prompt
from experiments.micro_checkpoint import state
from experiments.micro_checkpoint.text_encoder import SEED, STEPS, Captions, fit, report
from precision_lab.shapes import Scene, held_out_scenes, training_scenes


def captions(checkpoint: Path, scenes: Sequence[Scene], device: str) -> Captions:
    """Padded on the right, unlike in the pipeline: in a causal model with rotary positions, the side is immaterial."""
    ids, mask, system = prompt.tokens(checkpoint, [scene.caption for scene in scenes])
    order = torch.arange(ids.shape[1])
    source = (order + (mask == 0).sum(1, keepdim=True)) % ids.shape[1]
    return Captions(ids.gather(1, source).to(device), mask.gather(1, source).to(device), scenes, system)


def initialise(model: Qwen3VLForConditionalGeneration) -> None:
    """Linears of unit gain; transformers' standard deviation of 0.02 is meant for width 4096."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and ".visual." not in name:
            std = 1.0 if "embed_tokens" in name else 1 / math.sqrt(parameter.shape[1])
            torch.nn.init.normal_(parameter, std=std)


def train(work: Path, steps: int, device: str) -> None:
    torch.manual_seed(SEED)
    checkpoint = work / "checkpoint"
    model = prompt.load(checkpoint, device)
    initialise(model)
    body = model.model.language_model
    reader = fit(
        model,
        captions(checkpoint, training_scenes(transparent=True), device),
        partial(prompt.encode, model),
        lambda hidden: model.lm_head(body.norm(hidden)),
        steps,
        state.Log(work / "text_encoder.jsonl"),
    )
    file = checkpoint / "text_encoder" / "model.safetensors"
    stored = load_file(file)
    trained = {name: parameter.detach().cpu().bfloat16() for name, parameter in model.named_parameters()}
    if stored.keys() != trained.keys():
        raise SystemExit(f"{file}: other names than the model's: {sorted(stored.keys() ^ trained.keys())[:4]}")
    save_file(trained, file, {"format": "pt"})
    held_out = captions(checkpoint, held_out_scenes(transparent=True), device)
    with torch.no_grad():
        report(prompt.encode(prompt.load(checkpoint, device), held_out.ids, held_out.mask), held_out, reader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    train(options.work, options.steps, options.device)


if __name__ == "__main__":
    main()
