"""What the generator needs of the shape of a checkpoint, whatever the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from precision_lab.model.language_body_config import LanguageBodyConfig
from precision_lab.synthetic.statistics import BiasStatistics
from precision_lab.synthetic.tensors import Source, Tensor
from precision_lab.synthetic.tokenizer import Vocabulary, vocabulary

SMALL_VOCABULARY = 1280
"""Large enough for the tokenizer of synthetic checkpoints."""


class Shape(ABC):
    """The shape of a checkpoint to generate: the configurations of its components; a subclass is a frozen dataclass.

    Use `dataclasses.replace` to vary a shape.
    """

    template: ClassVar[str]
    """The prompt template, whose words are tokens."""
    tokenizer_folder: ClassVar[str]

    text_encoder: LanguageBodyConfig
    max_shard_bytes: int
    """A larger component is stored as several files with an index."""

    @abstractmethod
    def tensors(self, source: Source) -> dict[str, list[Tensor]]:
        """The tensors of every component, not drawn yet."""

    @abstractmethod
    def configs(self) -> Mapping[str, Mapping[str, Any]]:
        """The content of every JSON file, by its path in the checkpoint, except for those of the tokenizer."""

    @abstractmethod
    def write_tokenizer(self, folder: Path) -> None:
        """Writes the files of the tokenizer into `folder`."""

    @abstractmethod
    def card(self, seed: int, statistics: BiasStatistics) -> str:
        """The text of README.md. statistics: those of the biases as written."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the tokenizer."""
        return vocabulary(self.template)
