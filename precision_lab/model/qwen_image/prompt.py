"""The chat template and the tokenizer of Qwen-Image: from prompts to token ids."""

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
# Number of template tokens before the prompt, a constant in diffusers (prompt_template_encode_start_idx).
PREFIX_TOKENS = 34
MAX_TOKENS = 1024


class Tokens(NamedTuple):
    """Right-padded ids and mask, (B, T) int32 each."""

    ids: np.ndarray
    mask: np.ndarray

    @property
    def counts(self) -> list[int]:
        """The number of tokens of each prompt, with those that the template adds after it."""
        return [int(row.sum()) - PREFIX_TOKENS for row in self.mask]


class Tokenizer:
    """The tokenizer of a checkpoint, read from its `tokenizer` folder.

    Raises InputError if the folder has no readable tokenizer. Also raises InputError if the template's prefix is not 34
    tokens, because the embeddings of the wrong tokens would be dropped.
    """

    def __init__(self, folder: Path):
        self._tokenizer = read_tokenizer(folder)
        prefix = len(self._tokenizer(TEMPLATE.split("{}")[0]))
        if prefix != PREFIX_TOKENS:
            raise InputError(
                f"{folder}: the template's prefix is {prefix} tokens, expected {PREFIX_TOKENS}: not a Qwen2 tokenizer?"
            )

    def __call__(self, prompts: list[str], padding: int = 0) -> Tokens:
        """Token ids of the prompts in the template, right-padded to the longest and `padding` tokens more.

        Raises InputError for a prompt of more than 1024 tokens, including those that the template adds after it.
        """
        rows = [self._tokenizer(TEMPLATE.format(prompt)) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) - PREFIX_TOKENS > MAX_TOKENS:
                raise InputError(
                    f"prompt {prompt[:40]!r}... has {len(row) - PREFIX_TOKENS} tokens, expected at most {MAX_TOKENS}"
                )
        longest = max(map(len, rows)) + padding
        ids = np.full((len(rows), longest), self._tokenizer.pad, dtype=np.int32)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return Tokens(ids, mask)
