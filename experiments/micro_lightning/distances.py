"""How far the base and the exported adapter are from the teacher's path, step by step.

    python -m experiments.micro_lightning.distances WORK

Both take 4 steps without guidance from the noise of the teacher's trajectories, in fp32. One chunk was trained on, and
the other, the last of the recipe, was not. Chunks that are not in WORK are recorded first (`teacher`). Writes
distances.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from experiments.micro_checkpoint.model import Parameters
from experiments.micro_lightning.export import NAME
from experiments.micro_lightning.student import TARGETS, Base, sample
from experiments.micro_lightning.teacher import CHECKPOINT, LEVELS, record
from experiments.micro_lightning.train import Trajectories
from precision_lab.record.files import write_json

ADAPTER = CHECKPOINT.parent / "micro_lightning" / NAME
OUT = Path(__file__).parents[2] / "results" / "reference" / "cpu" / "micro_lightning"


def with_adapter(base: Base, tensors: Mapping[str, torch.Tensor], strength: float = 1.0) -> Parameters:
    """The base's parameters with the change of an exported file, times `strength`, added in fp32."""
    parameters = dict(base.parameters)
    for target in TARGETS:
        name = f"blocks.{target}.weight"
        weight = base.parameters[name].clone()
        for block in range(len(weight)):
            stem = f"transformer.transformer_blocks.{block}.{target}"
            if f"{stem}.lora_A.weight" in tensors:  # linears without an effect are omitted
                down, up = (tensors[f"{stem}.lora_{side}.weight"].float() for side in "AB")
                weight[block] += strength * (up @ down)
        parameters[name] = weight
    return parameters


@torch.no_grad()
def distances(
    base: Base, part: Trajectories, channels: torch.Tensor, parameters: Parameters | None = None
) -> list[float]:
    """By step, rel. L2 of the student's latents from the teacher's, weighted by channel (64,) as the loss is."""
    states = sample(base, part.states[:, 0], LEVELS, part.text, part.mask, parameters)
    return [_distance(state, part.states[:, k], channels) for k, state in enumerate(states) if k]


def _distance(state: torch.Tensor, target: torch.Tensor, channels: torch.Tensor) -> float:
    return (((state - target).square() * channels).sum() / (target.square() * channels).sum()).sqrt().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--trained", type=int, default=0, help="a chunk that was trained on")
    parser.add_argument("--unseen", type=int, default=7, help="one that was not")
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the products are small
    chunks = {"unseen": options.unseen, "trained_on": options.trained}
    record(options.work, list(chunks.values()), CHECKPOINT)
    parts = {
        name: Trajectories.load([options.work / "trajectories" / f"{chunk:04d}.safetensors"])
        for name, chunk in chunks.items()
    }
    base = Base.load(CHECKPOINT)
    channels = parts["trained_on"].weight()
    tensors = load_file(options.adapter)
    students = {
        "base": None,
        "adapter": with_adapter(base, tensors),
        "half_strength": with_adapter(base, tensors, 0.5),
    }
    found: dict[str, Any] = {
        f"{student}_{name}": {"trajectories": len(part), "steps": distances(base, part, channels, parameters)}
        for name, part in parts.items()
        for student, parameters in students.items()
    }
    write_json(options.out / "distances.json", found)
    for name, own in found.items():
        print(name, own["trajectories"], *(f"{value:.3f}" for value in own["steps"]))


if __name__ == "__main__":
    main()
