"""Captions as QwenImage21Pipeline conditions on them: template, left padding, states before the final norm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

SYSTEM_PROMPT = "Comprehend and analyze the provided prompt."
SYSTEM = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
"""The system message, whose tokens the transformer does not see."""

USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

TEXT_TOKENS = 18
"""Tokens of the longest caption of the world, with those of the template around it."""

NO_CAPTION = " "
"""What the pipeline makes of an empty prompt."""


def load(checkpoint: Path, device: str) -> Qwen3VLForConditionalGeneration:
    """The text encoder in fp32."""
    return Qwen3VLForConditionalGeneration.from_pretrained(
        checkpoint / "text_encoder", dtype=torch.float32, attn_implementation="sdpa"
    ).to(device)


def tokens(checkpoint: Path, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(n, L) int64 ids and mask, padded on the left, and the number of tokens of the system message."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "processor")
    system = len(tokenizer(SYSTEM)["input_ids"])
    rows = [tokenizer(SYSTEM + USER.format(caption))["input_ids"] for caption in captions]
    ids = torch.full((len(rows), system + TEXT_TOKENS), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, -len(row) :] = torch.tensor(row)
        mask[i, -len(row) :] = 1
    return ids, mask, system


def encode(model: Qwen3VLForConditionalGeneration, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, L, width) output of the last layer, before the final norm."""
    body = model.model.language_model
    kept: list[torch.Tensor] = []
    handle = body.norm.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    try:
        body(inputs_embeds=body.embed_tokens(ids), attention_mask=mask)
    finally:
        handle.remove()
    return kept[0]


@torch.no_grad()
def embeddings(checkpoint: Path, captions: Sequence[str], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, TEXT_TOKENS, width) fp32 states without the system message, padded on the right, and their bool mask."""
    model = load(checkpoint, device)
    ids, mask, system = tokens(checkpoint, captions)
    ids, mask = ids.to(device), mask.to(device)
    states = torch.cat([encode(model, i, m) for i, m in zip(ids.split(512), mask.split(512), strict=True)])
    lengths = mask.sum(1) - system
    order = torch.arange(TEXT_TOKENS, device=device)
    valid = order < lengths[:, None]
    # the first kept token of a row follows its padding and the system message
    source = (order + states.shape[1] - lengths[:, None]).clamp(max=states.shape[1] - 1)
    kept = states.gather(1, source[..., None].expand(-1, -1, states.shape[2]))
    return kept * valid[..., None], valid
