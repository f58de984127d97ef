"""Qwen-Image 1.x, text to image, as a subject of the laboratory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from precision_lab.errors import InputError
from precision_lab.model import paging
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.inflate import exponent, stream_scale
from precision_lab.model.qwen_image.naming import NAMINGS
from precision_lab.model.qwen_image.pipeline import Pipeline
from precision_lab.model.text_to_image.settings import Settings
from precision_lab.model.text_to_image.source import Source
from precision_lab.recipes.naming import Naming
from precision_lab.record import manifest


@dataclass
class QwenImage(Source):
    """Loads a checkpoint in the layout of Qwen/Qwen-Image (see `text_to_image.source.Source`).

    inflate: a power of two that multiplies the transformer's residual streams and leaves its function unchanged.
    """

    kind: ClassVar[type[Checkpoint]] = Checkpoint
    settings: ClassVar[type[Settings]] = Pipeline.settings
    publisher: ClassVar[str] = "Qwen/Qwen-Image"
    preset: ClassVar[str] = "full"
    namings: ClassVar[Mapping[str, Naming]] = NAMINGS
    varied: ClassVar[tuple[str, ...]] = (*Source.varied, "max_sequence_length", "batched_guidance")

    inflate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.inflate, bool) or not isinstance(self.inflate, int | float):
            raise InputError(f"inflate is {self.inflate!r}, expected a number like 4096")
        exponent(self.inflate)
        if self.stream:
            paging.check(self.inflate)

    @cached_property
    def opened(self) -> Checkpoint:
        return Checkpoint(self.folder(), self._rounded(), self.stream, inflate=self.inflate, **self._alone)

    @property
    def checkpoint(self) -> manifest.Checkpoint:
        scale = stream_scale(self.inflate)
        notes = [scale] if scale else []
        common = super().checkpoint
        return replace(common, settings={"inflate": self.inflate, **common.settings}, notes=notes)
