"""The text encoder of Qwen-Image: the language body of Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import MutableMapping

import mlx.core as mx

from precision_lab.model import language_body
from precision_lab.model.qwen_image.config import TextEncoderConfig


class TextEncoder(language_body.LanguageBody):
    """Maps token ids to the last hidden state after the final norm, the prompt embedding of Qwen-Image."""

    config: TextEncoderConfig

    @staticmethod
    def sanitize(weights: MutableMapping[str, mx.array]) -> tuple[MutableMapping[str, mx.array], list[str]]:
        """Renames the weights of a published checkpoint, see `language_body.sanitize`."""
        return language_body.sanitize(weights)
