"""A transformer in a GGUF file, as ComfyUI-GGUF (city96) and diffusers read it.

Weights of linears in a block format that is a coding stay packed. Other tensors are numbers, or are decoded when they
are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from precision_lab.device.page_cache import Extent
from precision_lab.errors import InputError, inline
from precision_lab.model.codings.gguf.blocks import BlockFormat
from precision_lab.model.codings.gguf.small import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from precision_lab.model.codings.gguf.super_blocks import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from precision_lab.model.stored.base import StoredLinear, StoredWeights
from precision_lab.model.stored.finite import Scales
from precision_lab.record import gguf

ARCHITECTURE = "qwen_image"
"""How `general.architecture` of Qwen-Image's transformers begins; stable-diffusion.cpp writes none."""
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""What all names of a file may begin with, as in ComfyUI's checkpoints."""
FORMATS: Mapping[int, BlockFormat] = {
    form.number: form for form in (Q4_0(), Q4_1(), Q5_0(), Q5_1(), Q8_0(), Q2_K(), Q3_K(), Q4_K(), Q5_K(), Q6_K())
}
"""The block formats that are read, by the number of their type."""
_NUMBERS = {0: mx.float32, 1: mx.float16, 30: mx.bfloat16}
_ORIGINAL = "comfy.gguf.orig_shape."


@dataclass(frozen=True, kw_only=True)
class GgufFile(StoredWeights):
    """The tensors of a GGUF file."""

    _tensors: Mapping[str, gguf.Tensor]

    @classmethod
    def open(cls, file: Path) -> GgufFile:
        """The transformer in `file`.

        Raises InputError for a malformed file, another architecture, a tensor of a type that is not read, or names of
        which only some have a prefix.
        """
        metadata, tensors = gguf.read_header(file)
        found = metadata.get("general.architecture", ARCHITECTURE)
        if not isinstance(found, str) or not found.startswith(ARCHITECTURE):
            raise InputError(f"{file}: general.architecture is {found!r:.80}, expected {ARCHITECTURE!r}")
        version = metadata.get("general.quantization_version", 2)
        if version != 2:
            raise InputError(f"{file}: general.quantization_version is {version!r:.80}, expected 2")
        for name, tensor in tensors.items():
            if tensor.kind not in _NUMBERS and tensor.kind not in FORMATS:
                known = ", ".join(gguf.TYPES[kind][0] for kind in (*_NUMBERS, *FORMATS))
                raise InputError(
                    f"{file}: tensor {inline(name)} is {gguf.TYPES[tensor.kind][0]}, which is not read, expected "
                    f"{known}"
                )
        shaped = {name: tensor._replace(shape=_shape(file, name, tensor, metadata)) for name, tensor in tensors.items()}
        tensors = _published(file, shaped)
        linears = {
            name.removesuffix(".weight"): StoredLinear(FORMATS[tensor.kind], (shape[0], shape[1]), ("weight",))
            for name, tensor in tensors.items()
            if tensor.kind in FORMATS and name.endswith(".weight") and len(shape := tensor.shape) == 2
        }
        about = {key: str(value) for key, value in metadata.items()}
        return cls(source=file, metadata=about, linears=linears, _tensors=tensors)

    @property
    def layout(self) -> str:
        return "GGUF"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.source,)

    def _read(self) -> MutableMapping[str, mx.array]:
        """All tensors by name, each read when it is first taken."""
        return _Tensors(self.source, self._tensors, self._packed())

    def _templates(self, paged: str) -> MutableMapping[str, mx.array]:
        return _Tensors(self.source, self._tensors, self._packed(), paged)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def extents(self) -> dict[str, Extent]:
        return {name: Extent(self.source, tensor.begin, tensor.size) for name, tensor in self._tensors.items()}

    def _scales(self) -> Mapping[str, Scales]:
        return {
            name: Scales("F16", form.size, form.halves)
            for name, tensor in self._tensors.items()
            if (form := FORMATS.get(tensor.kind)) is not None
        }

    def _packed(self) -> frozenset[str]:
        return frozenset(f"{path}.weight" for path in self.linears)


class _Tensors(MutableMapping[str, mx.array]):
    """Tensors by name, read from the file when they are taken, and kept until they are removed.

    packed: the names of those that stay in their block format. absent: the prefix of those that are zeros instead.
    """

    def __init__(
        self, file: Path, tensors: Mapping[str, gguf.Tensor], packed: frozenset[str], absent: str | None = None
    ):
        self._file, self._packed, self._absent = file, packed, absent
        self._unread: dict[str, gguf.Tensor] = dict(tensors)
        self._arrays: dict[str, mx.array] = {}

    def __getitem__(self, name: str) -> mx.array:
        if name in self._unread:
            self._arrays[name] = self._array(name, self._unread[name])
            del self._unread[name]
        return self._arrays[name]

    def __setitem__(self, name: str, array: mx.array) -> None:
        self._unread.pop(name, None)
        self._arrays[name] = array

    def __delitem__(self, name: str) -> None:
        if name in self._unread:
            del self._unread[name]
        else:
            del self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        yield from (*self._unread, *self._arrays)

    def __len__(self) -> int:
        return len(self._unread) + len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._unread or name in self._arrays

    def _array(self, name: str, tensor: gguf.Tensor) -> mx.array:
        form = FORMATS.get(tensor.kind)
        dtype = mx.uint8 if form is not None and name in self._packed else _NUMBERS.get(tensor.kind, mx.float32)
        shape = tensor.shape
        if form is not None:
            shape = (*shape[:-1], shape[-1] // form.values * form.size)
        if self._absent is not None and name.startswith(self._absent):
            return mx.zeros(shape if name in self._packed else tensor.shape, dtype)
        content = mx.array(self._content(name, tensor))
        if form is None:
            return content.view(dtype).reshape(shape)
        rows = content.reshape(-1, shape[-1])
        return rows if name in self._packed else form.decode({"weight": rows}).reshape(tensor.shape)

    def _content(self, name: str, tensor: gguf.Tensor) -> np.ndarray:
        """The bytes of a tensor, mapped into memory: MLX copies them."""
        try:
            return np.memmap(self._file, np.uint8, "r", tensor.begin, (tensor.size,))
        except (OSError, ValueError) as error:
            raise InputError(f"{self._file}: tensor {inline(name)} cannot be read: {error}") from error


def _published(file: Path, tensors: Mapping[str, gguf.Tensor]) -> dict[str, gguf.Tensor]:
    """The tensors without the prefix of their names. Raises InputError for a tensor that lacks the prefix of others."""
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors)), "")
    for name in tensors:
        if not name.startswith(prefix):
            raise InputError(f"{file}: tensor {inline(name)} has no prefix {prefix!r}, as others have")
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _shape(file: Path, name: str, tensor: gguf.Tensor, metadata: Mapping[str, gguf.Value]) -> tuple[int, ...]:
    """The shape of a tensor, or the one that it had before a writer reshaped it.

    Raises InputError for another number of values, or for rows that are not those of its blocks.
    """
    stated = metadata.get(f"{_ORIGINAL}{name}")
    if stated is None:
        return tensor.shape
    numbers = stated if isinstance(stated, tuple) else ()
    shape = tuple(number for number in numbers if type(number) is int and number > 0)
    whole = tensor.kind in _NUMBERS or shape[-1:] == tensor.shape[-1:]
    if len(shape) != len(numbers) or not whole or np.prod(shape, dtype=object) != np.prod(tensor.shape, dtype=object):
        raise InputError(
            f"{file}: {_ORIGINAL}{inline(name)} is {stated!r:.80}, but its tensor has the shape {tensor.shape}"
        )
    return shape
