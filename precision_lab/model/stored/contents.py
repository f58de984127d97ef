"""What files of weights hold, from their headers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from precision_lab.model import foreign
from precision_lab.model.stored.architecture import Architecture, identify
from precision_lab.model.stored.base import StoredWeights
from precision_lab.model.stored_quantization import channels_of
from precision_lab.record import gguf, safetensors

_BLOCK = re.compile(r"(transformer_blocks)\.(\d+)\.")


class Stored(NamedTuple):
    """A tensor as its file has it: the name there, its dtype or type of block, and its size in bytes."""

    name: str
    dtype: str
    nbytes: int


class Held(NamedTuple):
    """The tensors of one dtype."""

    dtype: str
    tensors: int
    nbytes: int


@dataclass(frozen=True)
class Contents:
    """The weights of a component.

    - architecture: of which transformer; None for another model.
    - held: by dtype, the largest first; everything that the files have, ignored tensors too.
    - shapes: of the decoded tensors, by published name.
    - used: bytes of the tensors that are read.
    - partial: whether tensors that the model does not have are left out, not refused.
    - markers: tensors that only say what the others are, by the last part of their names, with their number.
    """

    source: Path
    layout: str
    architecture: Architecture | None
    held: tuple[Held, ...]
    shapes: Mapping[str, tuple[int, ...]]
    used: int
    ignored: tuple[str, ...]
    partial: bool
    markers: Mapping[str, int]
    metadata: Mapping[str, str]
    model_type: str | None
    """What a configuration beside the files names."""

    @classmethod
    def of(cls, files: StoredWeights) -> Contents:
        """What `files` hold. No tensor is read. Scales of inputs count as ignored, as they are unless asked for."""
        files = files.without_inputs()
        headers = [header(file) for file in files.files]
        stored = [tensor for tensors, _ in headers for tensor in tensors]
        shapes = decoded_shapes(files)
        return cls(
            source=files.source,
            layout=files.layout,
            architecture=identify(shapes),
            held=held(stored),
            shapes=shapes,
            used=sum(extent.nbytes for extent in files.extents().values()),
            ignored=files.ignored,
            partial=files.partial,
            markers=Counter(found[1] for tensor in stored if (found := foreign.MARKER.fullmatch(tensor.name))),
            metadata={key: value for _, metadata in headers for key, value in metadata.items()},
            model_type=named if isinstance(named := files.config.get("model_type"), str) else None,
        )

    @property
    def bits(self) -> float:
        """Bits that a weight takes in the files, biases and vectors included."""
        return 8 * self.used / max(sum(map(prod, self.shapes.values())), 1)

    def missing(self, one_block: Iterable[str]) -> list[str]:
        """The tensors that the architecture has and the files lack.

        one_block: the names of all tensors of a transformer with a single block. A block of which the files have no
        tensor counts as one name.
        """
        names, absent = set(one_block), []
        present = {int(found[2]) for name in self.shapes if (found := _BLOCK.match(name))}
        gaps = sorted(set(range(min(max(present, default=-1), 10_000))) - present)
        for name in sorted(names):
            copies = [_BLOCK.sub(rf"\1.{index}.", name) for index in sorted(present)] if _BLOCK.match(name) else [name]
            absent += [copy for copy in copies if copy not in self.shapes]
        return [f"transformer_blocks.{index}" for index in gaps] + absent

    def unknown(self, one_block: Iterable[str]) -> list[str]:
        """The tensors of the files that the architecture has not."""
        names = set(one_block)
        return sorted(name for name in self.shapes if _BLOCK.sub(r"\1.0.", name) not in names)


def header(file: Path) -> tuple[list[Stored], dict[str, str]]:
    """The tensors of a GGUF or safetensors file, and its metadata as text. Raises InputError for a malformed header."""
    if gguf.is_gguf(file):
        found = gguf.read_header(file)
        stored = [Stored(name, gguf.TYPES[tensor.kind][0], tensor.size) for name, tensor in found.tensors.items()]
        return stored, {key: str(value) for key, value in found.metadata.items()}
    entries, metadata = safetensors.read_entries(file)
    return [Stored(name, entry.dtype, entry.size) for name, entry in entries.items()], dict(metadata)


def held(stored: Iterable[Stored]) -> tuple[Held, ...]:
    """Tensors counted by dtype, those with the most bytes first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in stored:
        counts[tensor.dtype] += 1
        sizes[tensor.dtype] += tensor.nbytes
    return tuple(Held(dtype, counts[dtype], size) for dtype, size in sizes.most_common())


def decoded_shapes(files: StoredWeights) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that `files` stand for, without the scales of packed ones.

    Raises InputError if the configuration or the metadata state no packing that exists.
    """
    shapes = files.shapes()
    parts = {f"{path}.{array}" for path, linear in files.linears.items() for array in linear.arrays} - {
        f"{path}.weight" for path in files.linears
    }
    packed = {name.removesuffix(".scales") for name in shapes if name.endswith(".scales")} - files.linears.keys()
    parts |= {f"{path}.{array}" for path in packed for array in ("scales", "biases")}
    decoded = {name: shape for name, shape in shapes.items() if name not in parts}
    for path in packed:
        name, scales = f"{path}.weight", shapes[f"{path}.scales"]
        if len(decoded.get(name, ())) == 2 and len(scales) == 2:
            channels = channels_of(files.config, files.metadata, path, decoded[name][1], scales[1])
            decoded[name] = (decoded[name][0], channels)
    return decoded
