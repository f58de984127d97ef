"""The files of other programs, as plain data: text, or the header of safetensors files. Nothing in them is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from precision_lab.errors import InputError, first_line
from precision_lab.record.files import parse_json, read_text
from precision_lab.record.safetensors import Entry, read_entries

LARGEST = 1 << 24
"""The largest text in bytes; a list of a thousand linears takes a tenth of a megabyte."""
_LARGEST_NOTE = 4096
"""The most bytes of a tensor that holds a note on its layer."""


@dataclass(frozen=True)
class Document:
    """A file. text: None for safetensors files, which have tensors and metadata instead."""

    name: str
    text: str | None = None
    tensors: Mapping[str, Entry] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Document:
        """Reads a text, a safetensors file, or a folder of them. Raises InputError for anything else."""
        if path.is_dir():
            files = sorted(path.glob("*.safetensors"))
            if not files:
                raise InputError(f"{path}: no safetensors files in this folder")
            return cls._of_weights(str(path), files)
        if path.suffix == ".safetensors":
            return cls._of_weights(str(path), [path])
        try:
            size = path.stat().st_size if path.is_file() else 0
        except (OSError, ValueError) as error:
            raise InputError(f"{str(path)!r} cannot be read: {first_line(error)}") from error
        if size > LARGEST:
            raise InputError(f"{path} has {size} bytes, expected at most {LARGEST} in a recipe")
        return cls(str(path), read_text(path))

    @classmethod
    def _of_weights(cls, name: str, files: list[Path]) -> Document:
        tensors: dict[str, Entry] = {}
        metadata: dict[str, str] = {}
        for file in files:
            entries, notes = read_entries(file)
            tensors |= entries
            metadata |= notes
        return cls(name, None, tensors, metadata)

    def json(self) -> Any:
        """The text as JSON. Raises InputError if it is none."""
        return parsed_json(self.words(), self.name)

    def words(self) -> str:
        """The text. Raises InputError for weights."""
        if self.text is None:
            raise InputError(f"{self.name}: weights, expected a text")
        return self.text

    def note(self, name: str) -> Any:
        """The JSON that the bytes of a small tensor hold. Raises InputError if they hold none."""
        entry = self.tensors[name]
        if not 0 < entry.size <= _LARGEST_NOTE:
            raise InputError(f"{self.name}: tensor {name} has {entry.size} bytes, expected 1 to {_LARGEST_NOTE}")
        return parsed_json(entry.content().decode("utf-8", errors="replace"), f"{self.name}: tensor {name}")


def parsed_json(text: str, what: str) -> Any:
    """The value of a JSON text. Raises InputError, with a message that begins with `what`, if it is none."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise InputError(f"{what} is not JSON: {reason}") from error


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """The value if it is a JSON object. Raises InputError, with a message that begins with `what`, if it is none."""
    if not isinstance(value, Mapping):
        raise InputError(f"{what} is {value!r:.80}, expected an object")
    return value


def names(value: Any, what: str) -> list[str]:
    """The value if it is a list of texts. Raises InputError, with a message that begins with `what`, if it is none."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{what} is {value!r:.80}, expected a list of names")
    return value
