"""The text encoder of Qwen-Image-2.1: the language body of Qwen3-VL."""

from __future__ import annotations

from collections.abc import MutableMapping

import mlx.core as mx

from precision_lab.model import language_body
from precision_lab.model.qwen_image_21.config import TextEncoderConfig


class TextEncoder(language_body.LanguageBody):
    """Maps token ids to the last hidden state before the final norm, the prompt embedding of Qwen-Image-2.1."""

    config: TextEncoderConfig

    @staticmethod
    def sanitize(weights: MutableMapping[str, mx.array]) -> tuple[MutableMapping[str, mx.array], list[str]]:
        """Renames the weights of a published checkpoint, see `language_body.sanitize`.

        It also leaves out the final norm, which the transformer was trained without.
        """
        return language_body.sanitize(weights, unused=("norm.weight",))
