"""The base class of the configurations of a text-to-image model's components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from precision_lab.model.config import Config
from precision_lab.model.text_to_image.kinds import Kinds


@dataclass(frozen=True)
class ComponentConfig(Config):
    """The configuration of one of the components, which may name its class."""

    kinds: ClassVar[Kinds]
    """The classes that the model reads."""
    part: ClassVar[str]
    """The component whose class a mapping must name, if it names one."""

    @classmethod
    def check_class(cls, raw: Mapping[str, Any]) -> None:
        cls.kinds.check_component(cls.part, raw)
