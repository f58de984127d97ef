"""Qwen-Image-2.1, text to image, as a subject of the laboratory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from precision_lab.model.qwen_image_21.checkpoint import Checkpoint
from precision_lab.model.qwen_image_21.naming import NAMINGS
from precision_lab.model.qwen_image_21.pipeline import Pipeline
from precision_lab.model.text_to_image.settings import Settings
from precision_lab.model.text_to_image.source import Source
from precision_lab.recipes.naming import Naming


@dataclass
class QwenImage21(Source):
    """Loads a checkpoint in the layout of Qwen/Qwen-Image-2.1 (see `text_to_image.source.Source`)."""

    kind: ClassVar[type[Checkpoint]] = Checkpoint
    settings: ClassVar[type[Settings]] = Pipeline.settings
    publisher: ClassVar[str] = "Qwen/Qwen-Image-2.1"
    preset: ClassVar[str] = "full_21"
    namings: ClassVar[Mapping[str, Naming]] = NAMINGS
    varied: ClassVar[tuple[str, ...]] = (*Source.varied, "prefix_cache")
