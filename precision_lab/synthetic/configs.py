"""The JSON files of a checkpoint, with the keys of the published files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from precision_lab.synthetic.tokenizer import Vocabulary


def diffusers(kind: str, version: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a class of diffusers."""
    return {"_class_name": kind, "_diffusers_version": version, **values}


def model_index(pipeline: str, version: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """model_index.json; the entry `_weights` marks the weights as synthetic."""
    return diffusers(pipeline, version, {"_weights": "synthetic", **values})


def special_tokens(words: Vocabulary) -> dict[str, int]:
    """The ids of the tokens around and inside pictures, under their keys in the configuration of a Qwen-VL model."""
    return {
        "image_token_id": words.special("<|image_pad|>"),
        "video_token_id": words.special("<|video_pad|>"),
        "vision_start_token_id": words.special("<|vision_start|>"),
        "vision_end_token_id": words.special("<|vision_end|>"),
    }


def ends(words: Vocabulary) -> dict[str, int]:
    """The ids of the tokens at the beginning and the end of a text."""
    return {"bos_token_id": words.special("<|endoftext|>"), "eos_token_id": words.special("<|im_end|>")}
