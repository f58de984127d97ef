"""Trains the text encoder: the language body of Qwen2.5-VL, two layers of width 64, on the captions of the world.

    python -m experiments.micro_checkpoint.text_encoder WORK

There are two objectives: the next token of the caption, and all attributes of the scene from the last position, with
linear heads that are discarded. Training starts from the synthetic weights, whose outputs have the published size
(about +-150, in two channels). It takes a minute on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

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


def labels(scenes: Sequence[Scene]) -> tuple[torch.Tensor, list[int]]:
    """(n, 6) the index of each attribute's value, and the number of values of each."""
    values = [sorted({str(getattr(scene, a)) for scene in training_scenes()}) for a in ATTRIBUTES]
    rows = [[v.index(str(getattr(scene, a))) for a, v in zip(ATTRIBUTES, values, strict=True)] for scene in scenes]
    return torch.tensor(rows), [len(v) for v in values]


def train(work: Path, steps: int, device: str) -> None:
    torch.manual_seed(SEED)
    checkpoint = work / "checkpoint"
    model = load(checkpoint, device)
    scenes = training_scenes()
    ids, mask = (torch.from_numpy(a).to(device) for a in data.tokens(checkpoint, [s.caption for s in scenes]))
    attributes, sizes = labels(scenes)
    attributes = attributes.to(device)
    with torch.no_grad():  # both heads read channels of unit size
        sample = encode(model, ids[:256], mask[:256])[:, PREFIX_TOKENS:]
        spread = sample.square().mean((0, 1)).sqrt()
        model.lm_head.weight /= spread
    heads = torch.nn.Linear(len(spread), sum(sizes)).to(device)
    trained = [p for n, p in model.named_parameters() if ".visual." not in n] + list(heads.parameters())
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    log = state.Log(work / "text_encoder.jsonl")
    ends = mask.sum(1) - 1
    for step in range(1, steps + 1):
        rows = torch.randint(len(scenes), (BATCH,), device=device)
        hidden = encode(model, ids[rows], mask[rows])
        caption = slice(PREFIX_TOKENS - 1, -1)
        logits = model.lm_head(hidden[:, caption])
        targets = ids[rows][:, PREFIX_TOKENS:].masked_fill(mask[rows][:, PREFIX_TOKENS:] == 0, -100)
        next_token = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        last = hidden[torch.arange(BATCH, device=device), ends[rows]] / spread
        parts = heads(last).split(sizes, dim=1)
        attribute = sum(F.cross_entropy(part, attributes[rows, i]) for i, part in enumerate(parts))
        optimizer.zero_grad()
        (next_token + attribute).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log(step=step, next_token=next_token.item(), attributes=attribute.item())
    _export(model, checkpoint)
    held_out = held_out_scenes()
    ids, mask = (torch.from_numpy(a).to(device) for a in data.tokens(checkpoint, [s.caption for s in held_out]))
    with torch.no_grad():
        hidden = encode(load(checkpoint, device), ids, mask)
        last = hidden[torch.arange(len(ids), device=device), mask.sum(1) - 1] / spread
        chosen = torch.stack([part.argmax(1) for part in heads(last).split(sizes, dim=1)], 1).cpu()
    right = (chosen == labels(held_out)[0]).float().mean(0)
    print("text encoder, attributes read from held-out captions:", dict(zip(ATTRIBUTES, right.tolist(), strict=True)))
    print(f"text encoder, output amax {hidden[:, PREFIX_TOKENS:].abs().max():.1f}")


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
