"""Prompts to token ids: the chat template and tokenizer of Qwen-Image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from precision_lab.errors import InputError

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
    """The tokenizer of a checkpoint, read through transformers from its `tokenizer` folder.

    Raises InputError for a folder that holds none, or one for which the template's prefix is not 34 tokens: the
    embeddings of the wrong tokens would be dropped.
    """

    def __init__(self, folder: Path):
        self._tokenizer = _read(folder)
        prefix = len(self._tokenizer(TEMPLATE.split("{}")[0])["input_ids"])
        if prefix != PREFIX_TOKENS:
            raise InputError(
                f"{folder}: the template's prefix is {prefix} tokens, expected {PREFIX_TOKENS}: not a Qwen2 tokenizer?"
            )

    def __call__(self, prompts: list[str]) -> Tokens:
        """Raises InputError for a prompt of more than 1024 tokens (with what the template adds after it)."""
        rows = [self._tokenizer(TEMPLATE.format(prompt))["input_ids"] for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) - PREFIX_TOKENS > MAX_TOKENS:
                raise InputError(
                    f"prompt {prompt[:40]!r}... has {len(row) - PREFIX_TOKENS} tokens, expected at most {MAX_TOKENS}"
                )
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self._tokenizer.pad_token_id or 0, dtype=np.int32)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return Tokens(ids, mask)


def _read(folder: Path) -> Any:
    if not folder.is_dir():
        raise InputError(f"no folder {folder}, expected that of a Qwen2 tokenizer")
    os.environ.setdefault(
        "TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"
    )  # that PyTorch, which no tokenizer needs, is missing
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing more specific
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{folder}: no tokenizer that can be read: {reason}\n"
            "Expected vocab.json, merges.txt and tokenizer_config.json, or tokenizer.json"
        ) from error
