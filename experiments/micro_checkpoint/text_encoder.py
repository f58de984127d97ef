"""Trains the text encoder: the language body of Qwen2.5-VL, two layers of width 64, on the captions of the world.

    python -m experiments.micro_checkpoint.text_encoder WORK

There are two objectives: the next token of the caption, and all attributes of the scene from the last position, with
linear heads that are discarded. Training starts from the synthetic weights, whose outputs have the published size
(about +-150, in two channels). It takes a minute on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its name in all PyTorch code
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from experiments.micro_checkpoint import data, state
from precision_lab.model.qwen_image.prompt import PREFIX_TOKENS
from precision_lab.shapes import Scene, held_out_scenes, training_scenes

LEARNING_RATE = 1e-3
BATCH = 256
STEPS = 1500
SEED = 2
ATTRIBUTES = ("count", "size", "color", "shape", "background", "position")


def load(checkpoint: Path, device: str) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        checkpoint / "text_encoder", torch_dtype=torch.float32, attn_implementation="sdpa"
    ).to(device)


def encode(model: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, T, 64) last hidden states after the final norm, as in QwenImagePipeline."""
    return model.model(input_ids=ids, attention_mask=mask).last_hidden_state


@torch.no_grad()
def embeddings(checkpoint: Path, captions: Sequence[str], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, TEXT_TOKENS, 64) fp32 embeddings without the template's prefix, and their (n, TEXT_TOKENS) bool mask."""
    model = load(checkpoint, device)
    ids, mask = (torch.from_numpy(a).to(device) for a in data.tokens(checkpoint, captions))
    parts = [encode(model, i, m) for i, m in zip(ids.split(512), mask.split(512), strict=True)]
    kept = torch.cat(parts)[:, PREFIX_TOKENS:]
    mask = mask[:, PREFIX_TOKENS:].bool()
    return kept * mask[..., None], mask


class Captions(NamedTuple):
    """ids, mask: (n, L) int64, padded on the right. scenes: what they describe. prefix: tokens before the caption."""

    ids: torch.Tensor
    mask: torch.Tensor
    scenes: Sequence[Scene]
    prefix: int


class Reader(NamedTuple):
    """Reads all attributes from the state of the last token, divided by `spread` (width,)."""

    heads: torch.nn.Linear
    spread: torch.Tensor
    values: list[list[str]]

    def logits(self, hidden: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One tensor (B, values) for each attribute; hidden: (B, L, width)."""
        last = hidden[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]
        return self.heads(last / self.spread).split([len(v) for v in self.values], dim=1)


def labels(scenes: Sequence[Scene], values: list[list[str]]) -> torch.Tensor:
    """(n, 6) the index of each attribute's value."""
    rows = [[v.index(str(getattr(scene, a))) for a, v in zip(ATTRIBUTES, values, strict=True)] for scene in scenes]
    return torch.tensor(rows)


def fit(
    model: torch.nn.Module,
    captions: Captions,
    encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    predict: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    log: state.Log,
) -> Reader:
    """Trains everything but the vision tower.

    encode: ids and mask (B, L) to the states (B, L, width) that the transformer will read. predict: states to the
    logits of the next token. model.lm_head is divided by the spread of the states, to read channels of unit size.
    """
    ids, mask, scenes, prefix = captions
    device = ids.device
    values = [sorted({str(getattr(scene, a)) for scene in scenes}) for a in ATTRIBUTES]
    attributes = labels(scenes, values).to(device)
    with torch.no_grad():
        spread = encode(ids[:256], mask[:256])[:, prefix:].square().mean((0, 1)).sqrt()
        model.lm_head.weight /= spread
    reader = Reader(torch.nn.Linear(len(spread), sum(map(len, values))).to(device), spread, values)
    trained = [p for n, p in model.named_parameters() if ".visual." not in n] + list(reader.heads.parameters())
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for step in range(1, steps + 1):
        rows = torch.randint(len(scenes), (BATCH,), device=device)
        hidden = encode(ids[rows], mask[rows])
        logits = predict(hidden[:, prefix - 1 : -1])
        targets = ids[rows][:, prefix:].masked_fill(mask[rows][:, prefix:] == 0, -100)
        next_token = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        parts = reader.logits(hidden, mask[rows])
        attribute = sum(F.cross_entropy(part, attributes[rows, i]) for i, part in enumerate(parts))
        optimizer.zero_grad()
        (next_token + attribute).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log(step=step, next_token=next_token.item(), attributes=attribute.item())
    return reader


@torch.no_grad()
def report(hidden: torch.Tensor, captions: Captions, reader: Reader) -> None:
    """Prints the share of each attribute that is read correctly, and the largest state."""
    chosen = torch.stack([part.argmax(1) for part in reader.logits(hidden, captions.mask)], 1).cpu()
    right = (chosen == labels(captions.scenes, reader.values)).float().mean(0)
    print("text encoder, attributes read from held-out captions:", dict(zip(ATTRIBUTES, right.tolist(), strict=True)))
    print(f"text encoder, output amax {hidden[:, captions.prefix :].abs().max():.1f}", flush=True)


def train(work: Path, steps: int, device: str) -> None:
    torch.manual_seed(SEED)
    checkpoint = work / "checkpoint"

    def captions(scenes: Sequence[Scene]) -> Captions:
        ids, mask = (torch.from_numpy(a).to(device) for a in data.tokens(checkpoint, [s.caption for s in scenes]))
        return Captions(ids, mask, scenes, PREFIX_TOKENS)

    model = load(checkpoint, device)
    log = state.Log(work / "text_encoder.jsonl")
    reader = fit(model, captions(training_scenes()), partial(encode, model), model.lm_head, steps, log)
    _export(model, checkpoint)
    held_out = captions(held_out_scenes())
    with torch.no_grad():
        report(encode(load(checkpoint, device), held_out.ids, held_out.mask), held_out, reader)


def _export(model: Qwen2_5_VLForConditionalGeneration, checkpoint: Path) -> None:
    """Stores the trained tensors in bf16 under the published names; the unused vision tower is unchanged."""
    file = checkpoint / "text_encoder" / "model.safetensors"
    stored = load_file(file)
    for name, parameter in model.named_parameters():
        published = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        assert stored[published].shape == parameter.shape, published
        stored[published] = parameter.detach().cpu().bfloat16()
    save_file(stored, file, {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    train(options.work, options.steps, options.device)


if __name__ == "__main__":
    main()
