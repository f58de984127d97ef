"""The settings of a case of Qwen-Image 1.x."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from precision_lab.errors import InputError, shown
from precision_lab.model.text_to_image import settings
from precision_lab.model.text_to_image.prompt import MAX_TOKENS

DIFFUSERS_TOKENS = 512
"""The default of `max_sequence_length` in QwenImagePipeline."""


@dataclass(frozen=True)
class Settings(settings.Settings):
    """The settings of `text_to_image.settings.Settings` and one more.

    max_sequence_length: the number of text tokens of a prompt that the transformer sees, at most 1024. The text encoder
    reads all of them, and the rest of its output is cut off, as in diffusers. None: all.
    """

    max_sequence_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        tokens = self.max_sequence_length
        if tokens is not None and not 1 <= tokens <= MAX_TOKENS:
            raise InputError(f"sampler.max_sequence_length is {tokens!r}, expected 1 to {MAX_TOKENS} tokens, or null")

    def remarks(self, prompts: Mapping[str, tuple[str, int]]) -> list[str]:
        found = super().remarks(prompts)
        limit = self.max_sequence_length
        for kind, (prompt, tokens) in prompts.items():
            what = f"{kind} {shown(prompt)} has {tokens} tokens"
            if limit is not None and tokens > limit:
                found.append(f"{what}, of which sampler.max_sequence_length uses the first {limit}")
            elif limit is None and tokens > DIFFUSERS_TOKENS:
                found.append(
                    f"{what}, of which diffusers by default uses the first {DIFFUSERS_TOKENS}. "
                    f"sampler.max_sequence_length={DIFFUSERS_TOKENS} does the same"
                )
        return found
