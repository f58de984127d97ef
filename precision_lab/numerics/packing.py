"""How a weight is packed: a few bits a value, and a scale for each group of a row.

The modes are those of `mx.quantize`: affine (scale and offset for each group), mxfp4 and mxfp8 (OCP Microscaling, 32
values share a power of two) and nvfp4 (16 share an e4m3 scale). Published nvfp4 files (NVIDIA ModelOpt, ComfyUI) have a
further fp32 scale for each tensor, by which the largest group scale becomes the largest number of e4m3.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

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
    """The packing of a weight: values a group, bits a value, and the mode of `mx.quantize`.

    tensor_scale: whether the weight is divided by a scale of its own first, in nvfp4.
    """

    group_size: int
    bits: int
    mode: str
    tensor_scale: bool = False

    @classmethod
    def checked(
        cls, what: str, mode: object, bits: object = None, group_size: object = None, tensor_scale: object = False
    ) -> Quantization:
        """Returns the quantisation if MLX supports it; bits and group size default to those of the mode.

        Raises InputError, with a message that begins with `what`, for unsupported values.
        """
        if not isinstance(mode, str) or mode not in MODES:
            raise InputError(f"{what}: mode is {mode!r}. {nearest(str(mode), MODES)}")
        if not isinstance(tensor_scale, bool):
            raise InputError(f"{what}: tensor_scale is {tensor_scale!r}, expected true or false")
        if tensor_scale and mode != "nvfp4":
            raise InputError(f"{what}: tensor_scale is true, which {mode} does not have, expected mode: nvfp4")
        choices = MODES[mode]
        return cls(
            _choice(what, mode, "group_size", group_size, choices.groups),
            _choice(what, mode, "bits", bits, choices.bits),
            mode,
            tensor_scale,
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """The packing as arguments of `mx.quantize`, which has no scale a tensor."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def fitting(self, channels: int) -> Quantization:
        """The same with the largest group size up to this one that divides `channels`; itself if none does."""
        sizes = (size for size in MODES[self.mode].groups if size <= self.group_size and channels % size == 0)
        return self._replace(group_size=max(sizes, default=self.group_size))

    def __str__(self) -> str:
        scaled = " with a scale a tensor" if self.tensor_scale else ""
        return f"{self.bits} bits in groups of {self.group_size}, {self.mode}{scaled}"


def _choice(what: str, mode: str, name: str, value: object, choices: tuple[int, ...]) -> int:
    if value is None:
        return choices[0]
    if type(value) is not int or value not in choices:
        raise InputError(f"{what}: {name} is {value!r}, {mode} has {', '.join(map(str, sorted(choices)))}")
    return value
