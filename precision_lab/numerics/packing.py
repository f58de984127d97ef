"""How `mx.quantize` packs a weight: a few bits a value, and a scale for each group of a row.

The modes are affine (scale and offset for each group), mxfp4 and mxfp8 (OCP Microscaling, 32 values share a power of
two) and nvfp4 (16 share an e4m3 scale).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from precision_lab.errors import InputError, nearest


class Mode(NamedTuple):
    """The group sizes and bits that `mx.quantize` supports in a mode, the default first."""

    groups: tuple[int, ...]
    bits: tuple[int, ...]


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "affine": Mode((64, 32, 128), (4, 2, 3, 5, 6, 8)),
        "mxfp4": Mode((32,), (4,)),
        "mxfp8": Mode((32,), (8,)),
        "nvfp4": Mode((16,), (4,)),
    }
)


class Quantization(NamedTuple):
    """The packing of a weight: values a group, bits a value, and the mode of `mx.quantize`."""

    group_size: int
    bits: int
    mode: str

    @classmethod
    def checked(cls, what: str, mode: object, bits: object = None, group_size: object = None) -> Quantization:
        """Returns the quantisation if MLX supports it; bits and group size default to those of the mode.

        Raises InputError, with a message that begins with `what`, for unsupported values.
        """
        if not isinstance(mode, str) or mode not in MODES:
            raise InputError(f"{what}: mode is {mode!r}. {nearest(str(mode), MODES)}")
        choices = MODES[mode]
        return cls(
            _choice(what, mode, "group_size", group_size, choices.groups),
            _choice(what, mode, "bits", bits, choices.bits),
            mode,
        )

    def fitting(self, channels: int) -> Quantization:
        """The same with the largest group size up to this one that divides `channels`; itself if none does."""
        sizes = (size for size in MODES[self.mode].groups if size <= self.group_size and channels % size == 0)
        return self._replace(group_size=max(sizes, default=self.group_size))

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group_size}, {self.mode}"


def _choice(what: str, mode: str, name: str, value: object, choices: tuple[int, ...]) -> int:
    if value is None:
        return choices[0]
    if type(value) is not int or value not in choices:
        raise InputError(f"{what}: {name} is {value!r}, {mode} has {', '.join(map(str, sorted(choices)))}")
    return value
