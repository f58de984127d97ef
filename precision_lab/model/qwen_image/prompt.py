"""Prompts to token ids: the chat template and tokenizer of Qwen-Image."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from precision_lab.errors import InputError
from precision_lab.model.tokenizer import read_tokenizer

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
# Tokens of the template before the prompt; diffusers fixes the number (prompt_template_encode_start_idx).
PREFIX_TOKENS = 34
MAX_TOKENS = 1024


class Tokens(NamedTuple):
    """Right-padded ids and mask, (B, T) int32 each."""

    ids: np.ndarray
    mask: np.ndarray


class Tokenizer:
    """The tokenizer of a checkpoint, read from its `tokenizer` folder.

    Raises InputError for a folder that holds none, or one for which the template's prefix is not 34 tokens: the
    embeddings of the wrong tokens would be dropped.
    """

    def __init__(self, folder: Path):
        self._tokenizer = read_tokenizer(folder)
        prefix = len(self._tokenizer(TEMPLATE.split("{}")[0]))
        if prefix != PREFIX_TOKENS:
            raise InputError(
                f"{folder}: the template's prefix is {prefix} tokens, expected {PREFIX_TOKENS}: not a Qwen2 tokenizer?"
            )

    def __call__(self, prompts: list[str]) -> Tokens:
        """Raises InputError for a prompt of more than 1024 tokens (with what the template adds after it)."""
        rows = [self._tokenizer(TEMPLATE.format(prompt)) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) - PREFIX_TOKENS > MAX_TOKENS:
                raise InputError(
                    f"prompt {prompt[:40]!r}... has {len(row) - PREFIX_TOKENS} tokens, expected at most {MAX_TOKENS}"
                )
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self._tokenizer.pad, dtype=np.int32)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return Tokens(ids, mask)
