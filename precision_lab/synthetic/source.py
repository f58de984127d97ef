"""Qwen-Image checkpoints, generated ones among them: `synthetic://PRESET` as a path."""

from __future__ import annotations

from pathlib import Path

from precision_lab.model.qwen_image import subject
from precision_lab.synthetic.cache import SCHEME, on_demand


class QwenImage(subject.QwenImage):
    """The source that `conf/model` names: a folder, a Hub id, package://NAME, or synthetic://PRESET."""

    def folder(self) -> Path:
        """The checkpoint's folder, fetched from the Hub or generated if it must be."""
        assert self.path is not None
        if self.path.startswith(SCHEME):
            return on_demand(self.path.removeprefix(SCHEME))
        return super().folder()
