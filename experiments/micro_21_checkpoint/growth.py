"""Measures how the residual stream grows through the blocks of the exported transformer, in diffusers and fp32.

    python -m experiments.micro_21_checkpoint.growth

Writes growth.json under --out: for each sigma of a sampling run, the largest magnitude after every block, over text and
over image tokens, and how concentrated it is in few channels. Nothing in the training bounds or drives these values.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from experiments.micro_21_checkpoint import reference
from experiments.micro_21_checkpoint.evaluate import REPOSITORY
from experiments.micro_checkpoint.tally import held_out

PROMPTS = 8
STEPS = 20
MASSIVE = 100.0
"""A value is massive if it exceeds this multiple of the median magnitude of its token's stream (Sun et al.,
arXiv:2402.17762, ask for 1,000 and a size of at least 100)."""


class Record:
    """Collects the stream before the first block and after each, of one forward pass at a time."""

    def __init__(self, transformer: torch.nn.Module):
        self.streams: list[torch.Tensor] = []
        self.branches: dict[str, float] = {}
        blocks = transformer.transformer_blocks
        blocks[0].register_forward_pre_hook(self._first, with_kwargs=True)
        for i, block in enumerate(blocks):
            block.register_forward_hook(lambda module, args, output: self.streams.append(output))
            for name in ("attn", "img_mlp"):
                getattr(block, name).register_forward_hook(
                    lambda module, args, output, key=f"transformer_blocks.{i}.{name}": self._largest(key, output)
                )
        for name in ("norm_out", "proj_out"):
            getattr(transformer, name).register_forward_hook(
                lambda module, args, output, key=name: self._largest(key, output)
            )

    def _first(self, module: torch.nn.Module, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        self.streams = [kwargs["hidden_states"]]

    def _largest(self, key: str, output: torch.Tensor) -> None:
        self.branches[key] = max(self.branches.get(key, 0.0), output.abs().max().item())


def summary(streams: list[torch.Tensor], text: int, mask: torch.Tensor) -> dict[str, Any]:
    """The largest magnitudes (blocks + 1,), the two largest channels after the last block, and the massive share.

    text: number of text positions in the stream, 0 with cached keys and values. mask: (B, T) of valid ones.
    """
    image = [x[:, text:].flatten(0, 1) for x in streams]
    words = [x[:, :text][mask] for x in streams] if text else []
    result = {}
    for name, values in (("image", image), ("text", words)):
        if values:
            peaks = [x.abs().amax(0) for x in values]
            ratios = [(x.abs().amax(1) / x.abs().median(1).values) for x in values]
            result[name] = {
                "amax": [peak.max().item() for peak in peaks],
                "rms": [x.square().mean().sqrt().item() for x in values],
                "largest_over_median": [ratio.median().item() for ratio in ratios],
                "massive_tokens": [(ratio > MASSIVE).float().mean().item() for ratio in ratios],
                "largest_channels": [peak.topk(3).indices.tolist() for peak in peaks],
            }
    return result


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=REPOSITORY / "precision_lab" / "checkpoints" / "micro_21")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results/reference/cpu/micro_21_checkpoint")
    options = parser.parse_args()
    pipeline = reference.load(options.checkpoint, torch.float32)
    record = Record(pipeline.transformer)
    captions = [scene.caption for scene in held_out(PROMPTS, transparent=True)]
    _, mask, _ = pipeline.encode_prompt(captions)
    rows: list[dict[str, Any]] = []

    def measure(pipeline: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        text = mask.shape[1] if step == 0 else 0  # later steps read the prefix from the cache
        sigma = pipeline.scheduler.sigmas[step].item()
        rows.append({"sigma": sigma, **summary(record.streams, text, mask.bool())})
        return tensors

    pipeline(
        captions,
        height=128,
        width=128,
        num_inference_steps=STEPS,
        generator=[torch.Generator().manual_seed(seed) for seed in range(PROMPTS)],
        output_type="latent",
        callback_on_step_end=measure,
    )
    weights = {name: p.abs().max().item() for name, p in pipeline.transformer.named_parameters()}
    name = max(weights, key=weights.__getitem__)
    largest = max((k for k in record.branches if k not in ("norm_out", "proj_out")), key=record.branches.__getitem__)
    result = {
        "largest_weight": {"name": name, "value": weights[name]},
        "largest_branch": {"name": largest, "value": record.branches[largest]},
        "norm_out": record.branches["norm_out"],
        "proj_out": record.branches["proj_out"],
        "steps": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "growth.json").write_text(json.dumps(result, indent=1) + "\n")
    for row in (rows[0], rows[len(rows) // 2], rows[-1]):
        print(f"sigma {row['sigma']:.3f}", {k: [round(v, 1) for v in row[k]["amax"][::4]] for k in row if k != "sigma"})
    print({k: v for k, v in result.items() if k != "steps"})


if __name__ == "__main__":
    main()
