"""Qwen-Image checkpoints, including generated ones, which have the path `synthetic://PRESET`."""

from __future__ import annotations

from pathlib import Path

from precision_lab.model.qwen_image import subject
from precision_lab.synthetic.cache import SCHEME, on_demand


class QwenImage(subject.QwenImage):
    """Loads the checkpoint of a `conf/model`; its path is a folder, a Hub id, package://NAME or synthetic://PRESET."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is None and self.path is not None and self.path.startswith(SCHEME):
            self.name = f"{self.path.removeprefix(SCHEME)}_synthetic"

    def folder(self) -> Path:
        """The folder of the checkpoint, downloaded from the Hub or generated if necessary."""
        assert self.path is not None
        if self.path.startswith(SCHEME):
            return on_demand(self.path.removeprefix(SCHEME))
        return super().folder()
