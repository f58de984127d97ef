"""From prompts to token ids, in the raw template of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from precision_lab.errors import InputError
from precision_lab.model.tokenizer import read_tokenizer

MAX_TOKENS = 1024


class Template(NamedTuple):
    """text: with {} for the prompt. system: its part whose embeddings the transformer does not see.

    system_tokens: how many tokens that is, if diffusers has a constant for it. pads_left: the side of padding.
    """

    text: str
    system: str
    system_tokens: int | None
    pads_left: bool


class Tokens(NamedTuple):
    """Padded ids and mask, (B, T) int32 each."""

    ids: np.ndarray
    mask: np.ndarray


class Tokenizer:
    """The tokenizer in `folder` and a template.

    dropped: the number of tokens before each prompt that the transformer does not see.

    Raises InputError if the folder has no readable tokenizer. Also raises InputError if the template's system part has
    not the expected number of tokens, because the embeddings of the wrong tokens would be dropped.
    """

    def __init__(self, folder: Path, template: Template):
        self._tokenizer, self._template = read_tokenizer(folder), template
        self.dropped = len(self._tokenizer(template.system))
        if template.system_tokens not in (None, self.dropped):
            raise InputError(
                f"{folder}: the template's prefix is {self.dropped} tokens, expected {template.system_tokens}: "
                "not a Qwen2 tokenizer?"
            )

    def __call__(self, prompts: list[str], padding: int = 0) -> Tokens:
        """Token ids of the prompts in the template, padded to the longest and `padding` tokens more.

        Raises InputError for a prompt of more than 1024 tokens, including those that the template adds around it.
        """
        rows = [self._tokenizer(self._template.text.format(prompt)) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) - self.dropped > MAX_TOKENS:
                raise InputError(
                    f"prompt {prompt[:40]!r}... has {len(row) - self.dropped} tokens, expected at most {MAX_TOKENS}"
                )
        longest = max(map(len, rows)) + padding
        ids = np.full((len(rows), longest), self._tokenizer.pad, dtype=np.int32)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(longest - len(row), None) if self._template.pads_left else slice(len(row))
            ids[i, place] = row
            mask[i, place] = 1
        return Tokens(ids, mask)

    def counts(self, prompts: list[str]) -> list[int]:
        """The number of tokens of each prompt that the transformer sees, with those that the template adds."""
        return [int(row.sum()) - self.dropped for row in self(prompts).mask]
