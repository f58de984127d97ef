"""Writes the processor of a Qwen3-VL model: its tokenizer, its chat template, and the settings of images and videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from precision_lab.synthetic import tokenizer
from precision_lab.synthetic.tokenizer import Vocabulary

_CLASS = "Qwen3VLProcessor"

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The part of Qwen3-VL's chat template that a diffusion pipeline needs: roles, text, images and videos."""

_IMAGE_EDGES = {"longest_edge": 16777216, "shortest_edge": 65536}
_VIDEO_EDGES = {"longest_edge": 25165824, "shortest_edge": 4096}
"""The published smallest and largest areas, in pixels."""


class Patches(NamedTuple):
    """The patches that a vision tower reads, and the side of the square of patches that it merges to one token."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int


def write(folder: Path, words: Vocabulary, patches: Patches) -> None:
    """Writes all files of the processor into `folder`."""
    tokenizer.write(folder, words, processor_class=_CLASS)
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")
    settings = patches._asdict() | {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": _CLASS,
    }
    images = {"size": _IMAGE_EDGES, "image_processor_type": "Qwen2VLImageProcessor"}
    videos = {"size": _VIDEO_EDGES, "video_processor_type": "Qwen3VLVideoProcessor"}
    _write(folder / "preprocessor_config.json", settings | images)
    _write(folder / "video_preprocessor_config.json", settings | videos)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
