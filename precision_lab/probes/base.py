"""The interface of probes: a pure function from an array to named scalars, and the sites to apply it to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import mlx.core as mx

from precision_lab.instrument.observation import Columns, Observation
from precision_lab.record.columns import Column

Scalar = mx.array | float | int

ACTIVATIONS = "activations"
"""The table with one row for every observed array."""


@runtime_checkable
class Probe(Protocol):
    """Measures single arrays. Each scalar becomes a column of activations.parquet.

    Any object with these members, from any package, is a probe.
    """

    @property
    def sites(self) -> Sequence[str]:
        """Patterns of the modules to observe."""

    @property
    def ports(self) -> Sequence[str]:
        """ "out", "in" or both: which arrays of a call to measure, one by one."""

    def measure(self, x: mx.array) -> Mapping[str, Scalar]:
        """Scalars of one evaluated array. Scalars that are MLX arrays may be lazy; they are evaluated in groups."""


@runtime_checkable
class BatchProbe(Probe, Protocol):
    """A probe that measures many arrays together faster than one by one."""

    def measure_each(self, arrays: Sequence[mx.array]) -> Sequence[Mapping[str, Scalar]] | Columns:
        """`measure` of each array: one mapping per array, or one mapping of columns with an element per array."""


class Pending(Protocol):
    """Statistics of some arrays that have not been evaluated yet."""

    @property
    def rows(self) -> Sequence[mx.array]:
        """Small lazy arrays. The caller of `prepare` evaluates them together with the measured arrays."""


@runtime_checkable
class LazyProbe(Probe, Protocol):
    """A probe whose statistics are launched with the evaluation of the arrays and read at any later time.

    The arrays can be released before then, and the device does not wait for the reader.
    """

    @property
    def is_lazy(self) -> bool:
        """Whether to launch statistics lazily on the default device; otherwise it is measured like any other probe."""

    def prepare(self, arrays: Sequence[mx.array]) -> Pending:
        """The statistics of arrays that may be lazy. Evaluates nothing."""

    def columns(self, pending: Sequence[Any]) -> Columns:
        """`measure` of each array in `pending`, the results of `prepare`, in order; waits for their evaluation."""


@runtime_checkable
class CallProbe(Protocol):
    """A probe that measures all arrays of a call together. Its scalars are added to the row of the call's output."""

    @property
    def sites(self) -> Sequence[str]:
        """Patterns of the modules to observe."""

    @property
    def ports(self) -> Sequence[str]:
        """Exactly ("call",), which distinguishes it from a `Probe`."""

    def measure(self, inputs: Sequence[mx.array], output: mx.array) -> Mapping[str, Scalar]:
        """Scalars of one call; inputs in the order of the ports in.0, in.1, ...; all arrays are evaluated."""


class Recorder(Protocol):
    """Collects rows during one generation. Each row has the fields of a Position, and scalars.

    table: the table of the rows. In ACTIVATIONS, the rows of several probes for one array are joined into one row. A
    table with any other name is written to NAME.parquet and may have many rows per array.

    If a recorder also has a property `columns: Columns`, the same table by columns, that is read instead. For many rows
    it is several times faster.
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
        """A new recorder, for one generation."""


@runtime_checkable
class Declaring(Protocol):
    """A probe that declares the columns it adds: their names, dtypes, units and meanings.

    Tables use the dtypes, and the glossary of the report uses the rest. The columns of a probe without declarations are
    float64.
    """

    @property
    def adds(self) -> Sequence[Column]:
        """The columns, in order."""


AnyProbe = Probe | CallProbe | StreamProbe
