"""Refuses scales that are not finite when they are first read: one of them spoils a block, a row or a tensor.

The bytes are looked at in the file, so that nothing is evaluated. Values of weights that are not finite are no error:
they are results, as in a plain weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import NamedTuple

import ml_dtypes
import mlx.core as mx
import numpy as np

from precision_lab.device.page_cache import Extent
from precision_lab.errors import InputError, inline

_PIECE = 1 << 15
"""Scales that are looked at together: their bytes stay in the cache."""


class _Type(NamedTuple):
    """A type of numbers, and the bits of the last byte that are all set in each number that is not finite."""

    dtype: np.dtype
    mask: int


_TYPES = {
    "F32": _Type(np.dtype("<f4"), 0x7F),
    "F16": _Type(np.dtype("<f2"), 0x7C),
    "BF16": _Type(np.dtype(ml_dtypes.bfloat16), 0x7F),
    "F8_E4M3": _Type(np.dtype(ml_dtypes.float8_e4m3fn), 0x7F),
    "F8_E8M0": _Type(np.dtype(ml_dtypes.float8_e8m0fnu), 0xFF),
}


class Scales(NamedTuple):
    """The scales in a tensor: in each block of `size` bytes, one number of the type `kind` at each of `offsets`.

    kind: as safetensors spells it. stored: the name of the tensor in its file, if that is not its published one.
    """

    kind: str
    size: int
    offsets: tuple[int, ...] = (0,)
    stored: str | None = None

    @classmethod
    def alone(cls, kind: str, stored: str | None = None) -> Scales:
        """Those of a tensor that has nothing else: a block is one number."""
        return cls(kind, _TYPES[kind].dtype.itemsize, stored=stored)


def of_packed(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Scales]:
    """The scales of modules that `mx.quantize` packed, and their offsets, from the dtype and shape of each tensor.

    Scales in bytes are e4m3 in nvfp4, one for two words of codes; in mxfp4 and mxfp8 they are powers of two.
    """
    found: dict[str, Scales] = {}
    for name, (dtype, shape) in tensors.items():
        path, _, last = name.rpartition(".")
        if last in ("scales", "biases") and f"{path}.scales" in tensors:
            _, packed = tensors.get(f"{path}.weight", ("", ()))
            of_bytes = "F8_E4M3" if shape and packed[-1:] == (2 * shape[-1],) else "F8_E8M0"
            found[name] = Scales.alone(of_bytes if dtype == "U8" else dtype)
    return found


class Checked(MutableMapping[str, mx.array]):
    """Tensors whose scales are checked in the file when they are first taken.

    scales: by the names of tensors. unread: names that begin with it are taken unchecked, because they are not read.
    sound: the names that were checked before; more are added. extents: where the tensors are, asked for once needed.
    Taking a tensor raises InputError, with the file, the tensor and the block, for a scale that is not finite.
    """

    def __init__(
        self,
        tensors: MutableMapping[str, mx.array],
        scales: Mapping[str, Scales],
        extents: Callable[[], Mapping[str, Extent]],
        sound: set[str],
        unread: str | None = None,
    ):
        self._tensors, self._scales, self._extents, self._sound, self._unread = tensors, scales, extents, sound, unread
        self._places: Mapping[str, Extent] | None = None

    def __getitem__(self, name: str) -> mx.array:
        array = self._tensors[name]
        unread = self._unread is not None and name.startswith(self._unread)
        if name in self._scales and name not in self._sound and not unread:
            self._places = self._extents() if self._places is None else self._places
            check(name, self._places[name], self._scales[name])
            self._sound.add(name)
        return array

    def __setitem__(self, name: str, array: mx.array) -> None:
        self._tensors[name] = array

    def __delitem__(self, name: str) -> None:
        del self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors


def check(name: str, extent: Extent, scales: Scales) -> None:
    """Raises InputError if a scale in the extent of the tensor `name` is not finite, or if it cannot be read."""
    dtype, mask = _TYPES[scales.kind]
    blocks = extent.nbytes // scales.size
    if not blocks:
        return
    name = scales.stored or name
    try:
        content: np.ndarray = np.memmap(extent.file, np.uint8, "r", extent.offset, (blocks * scales.size,))
    except (OSError, ValueError) as error:
        raise InputError(f"{extent.file}: tensor {inline(name)} cannot be read: {error}") from error
    for begin in range(0, blocks, _PIECE):
        rows = content[begin * scales.size : (begin + _PIECE) * scales.size].reshape(-1, scales.size)
        for offset in scales.offsets:
            last = rows[:, offset + dtype.itemsize - 1]
            suspects = (last & mask) == mask
            if suspects.any():
                places = np.flatnonzero(suspects)
                numbers = rows[places, offset : offset + dtype.itemsize].copy().view(dtype)[:, 0].astype(np.float32)
                wrong = np.flatnonzero(~np.isfinite(numbers))
                if wrong.size:
                    raise InputError(
                        f"{extent.file}: tensor {inline(name)} has the scale {numbers[wrong[0]]:g} in block "
                        f"{begin + places[wrong[0]]}, expected a finite number"
                    )
