"""The weights of a component as files store them, whatever their layout: the contract between readers and loading.

A reader checks the headers of its files before it reads a tensor, and presents the tensors under the names of the
published checkpoint. The weight of a linear may stay in the format of the file: `linears` then says which, and the
tensors hold the arrays of that format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import mlx.core as mx

from precision_lab.device.page_cache import Extent
from precision_lab.model.codings.base import Coding, Inputs
from precision_lab.model.stored.finite import Checked, Scales
from precision_lab.numerics.packing import Quantization


class StoredLinear(NamedTuple):
    """A linear whose weight stays in the format of its file.

    storage: a coding, or a packing that MLX multiplies with. shape: (outputs, channels) of the decoded weight. arrays:
    the names of the arrays that store it, without the bias; each is a tensor named after the path of the linear, like
    `transformer_blocks.0.attn.to_q.weight`. For a packing these are `weight`, `scales` and maybe `tensor_scale`.

    inputs: the rounding of the inputs that the file states or its format has; None for none. multiple: rows and
    channels that are no multiple of it may be padded with zeros to one.

    The reader has checked the shapes of the arrays against `shape`; whether `shape` fits the model is checked later.
    """

    storage: Coding | Quantization
    shape: tuple[int, int]
    arrays: tuple[str, ...]
    inputs: Inputs | None = None
    multiple: int = 1

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a linear of `shape` can have this weight, maybe without its padding."""
        whole = tuple(-(-n // self.multiple) * self.multiple for n in shape)
        return self.shape in (shape, whole)


@dataclass(frozen=True, kw_only=True)
class StoredWeights(ABC):
    """The weights of a component in one or more files, whose headers are checked. They can be read repeatedly.

    source: the file or folder, for messages. config: the configuration of the component, empty without one. metadata:
    that of the files. linears: the linears that stay in a format of the file, by published path. input_scales: the
    names of the tensors that their `inputs` have. ignored: the names of tensors that are left out. partial: whether
    tensors that the model does not have are left out too, not refused.
    """

    source: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    linears: Mapping[str, StoredLinear] = field(default_factory=dict)
    input_scales: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    partial: bool = False
    _sound: set[str] = field(default_factory=set, repr=False, compare=False)
    """The tensors whose scales were read and are finite."""

    def without_inputs(self) -> Self:
        """The same weights, without the rounding of inputs; its scales are left out."""
        linears = {path: linear._replace(inputs=None) for path, linear in self.linears.items()}
        return replace(self, linears=linears, input_scales=(), ignored=(*self.ignored, *self.input_scales))

    @property
    def layout(self) -> str:
        """How the files store the component, in words that complete "stored as"."""
        return "safetensors"

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The weight files, whose contents the fingerprint covers."""

    def read(self) -> MutableMapping[str, mx.array]:
        """All tensors under their published names; each call returns new arrays.

        A tensor is read when its array is evaluated, or when it is taken from the mapping. Taking one for the first
        time raises InputError if its scales are not finite (see `stored.finite`).
        """
        return Checked(self._read(), self._scales(), self.extents, self._sound)

    def templates(self, paged: str) -> MutableMapping[str, mx.array]:
        """As `read`; tensors whose names begin with `paged` may be unevaluated zeros of their shape and dtype.

        The loader of a paged model asks for these, because it drops the tensors of the blocks unused.
        """
        return Checked(self._templates(paged), self._scales(), self.extents, self._sound, paged)

    @abstractmethod
    def _read(self) -> MutableMapping[str, mx.array]:
        """As `read`, nothing checked."""

    def _templates(self, paged: str) -> MutableMapping[str, mx.array]:
        """As `templates`, nothing checked. A reader whose arrays are read when they are made overrides this."""
        return self._read()

    def _scales(self) -> Mapping[str, Scales]:
        """Where scales are that have not been checked yet, by the published names of tensors."""
        return {}

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor under its published name; for a stored linear that of its decoded weight."""

    @abstractmethod
    def extents(self) -> dict[str, Extent]:
        """The file, offset and size in bytes of the tensors, under their published names."""
