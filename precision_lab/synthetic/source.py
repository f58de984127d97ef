"""Checkpoints of text to image, including generated ones, which have the path `synthetic://PRESET`."""

from __future__ import annotations

from pathlib import Path

from precision_lab.model.qwen_image import subject
from precision_lab.model.qwen_image_21 import subject as subject_21
from precision_lab.model.text_to_image.source import Source
from precision_lab.synthetic.cache import SCHEME, on_demand


class Generated(Source):
    """Adds generated checkpoints to a source: its path may also be synthetic://PRESET."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is None and self.path is not None and self.path.startswith(SCHEME):
            self.name = f"{self.path.removeprefix(SCHEME)}_synthetic"

    def find(self, source: str) -> Path:
        """The folder of a whole checkpoint, downloaded from the Hub or generated if necessary."""
        return on_demand(source.removeprefix(SCHEME)) if source.startswith(SCHEME) else super().find(source)


class QwenImage(Generated, subject.QwenImage):
    """Loads the checkpoint of a `conf/model`; its path is a folder, a Hub id, package://NAME or synthetic://PRESET."""


class QwenImage21(Generated, subject_21.QwenImage21):
    """Loads a checkpoint of Qwen-Image-2.1; its path is as in `QwenImage`."""
