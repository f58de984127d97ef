"""The protocols of probes: a pure function from an array to named scalars, and the sites to apply it to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import mlx.core as mx

from precision_lab.instrument.observation import Columns, Observation
from precision_lab.record.columns import Column

Scalar = mx.array | float | int

ACTIVATIONS = "activations"
"""The table with one row for every array that was seen."""


@runtime_checkable
class Probe(Protocol):
    """Each scalar becomes a column of activations.parquet.

    Anything with these members works, from any package.
    """

    @property
    def sites(self) -> Sequence[str]:
        """Patterns of the modules to observe."""

    @property
    def ports(self) -> Sequence[str]:
        """ "out", "in" or both: which arrays of a call to measure, one by one."""

    def measure(self, x: mx.array) -> Mapping[str, Scalar]:
        """Scalars of one evaluated array; those that are MLX arrays may be lazy, they are evaluated in groups."""


@runtime_checkable
class BatchProbe(Probe, Protocol):
    """A probe that measures many arrays faster together than one by one."""

    def measure_each(self, arrays: Sequence[mx.array]) -> Sequence[Mapping[str, Scalar]] | Columns:
        """The result of `measure` for each array: a mapping each, or one of columns with an element for each array."""


class Pending(Protocol):
    """Statistics of some arrays that are not there yet."""

    @property
    def rows(self) -> Sequence[mx.array]:
        """Lazy and small; the caller of `prepare` evaluates them together with their arrays."""


@runtime_checkable
class LazyProbe(Probe, Protocol):
    """A probe whose statistics are launched with the evaluation of the arrays, and read whenever that is convenient.

    The arrays need not be kept until then, and the device need not wait for the reader.
    """

    @property
    def is_lazy(self) -> bool:
        """Whether to use it so on the default device; otherwise it is measured as any other probe."""

    def prepare(self, arrays: Sequence[mx.array]) -> Pending:
        """The statistics of arrays that need not be evaluated; evaluates nothing."""

    def columns(self, pending: Sequence[Any]) -> Columns:
        """The results of `measure` for each array that was prepared, in that order; waits for them."""


@runtime_checkable
class CallProbe(Protocol):
    """A probe that looks at all arrays of a call together; its scalars join the row of the call's output."""

    @property
    def sites(self) -> Sequence[str]:
        """Patterns of the modules to observe."""

    @property
    def ports(self) -> Sequence[str]:
        """Exactly ("call",): what tells it from a `Probe`."""

    def measure(self, inputs: Sequence[mx.array], output: mx.array) -> Mapping[str, Scalar]:
        """Scalars of one call; inputs in the order of the ports in.0, in.1, ...; all arrays are evaluated."""


class Recorder(Protocol):
    """Collects rows over one generation: each has the fields of a Position, and its scalars.

    table: where they go. In ACTIVATIONS rows of one array are joined with those of other probes, one array a row; a
    table of any other name is the recorder's own, NAME.parquet, and may hold many rows of one array.

    A recorder that has a property `columns: Columns` too, the same table by columns, is read through it: where rows
    are many, that is several times faster.
    """

    @property
    def table(self) -> str: ...

    @property
    def sites(self) -> Sequence[str]: ...

    @property
    def ports(self) -> Sequence[str]: ...

    @property
    def rows(self) -> list[dict[str, Any]]: ...

    def observe(self, batch: Sequence[Observation]) -> None: ...


@runtime_checkable
class StreamProbe(Protocol):
    """A probe that must see several arrays before it can measure any."""

    @property
    def sites(self) -> Sequence[str]:
        """Patterns of the modules to observe."""

    @property
    def ports(self) -> Sequence[str]:
        """ "out", "in", both, or ("call",)."""

    def recorder(self) -> Recorder:
        """A new one for each generation."""


@runtime_checkable
class Declaring(Protocol):
    """A probe that states the columns it adds: their names, dtypes, units and meanings.

    Tables take the dtypes from there, and the glossary of the report the rest. A probe that states nothing adds
    columns of float64.
    """

    @property
    def adds(self) -> Sequence[Column]:
        """The columns, in order."""


AnyProbe = Probe | CallProbe | StreamProbe
