"""The columns of the probes of a run: no two quantities may share a name, since one would replace the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx

from precision_lab.errors import InputError
from precision_lab.lab.observing import CALL
from precision_lab.lab.recorder import recorder_of
from precision_lab.probes.base import ACTIVATIONS, AnyProbe, CallProbe, Declaring, Probe, StreamProbe
from precision_lab.record import tables
from precision_lab.record.consistency import NAME

_FOLDERS = ("images", "figures", "reference", "results", "errors")
"""Other names in a run folder, which no table may have."""


class _Owner(NamedTuple):
    """The probe that a column comes from, and what the column means: its declaration, else the class of the probe."""

    probe: str
    meaning: object


def check(probes: Mapping[str, AnyProbe]) -> None:
    """Raises InputError for a probe with a column that every row has, or that another probe has for something else.

    Two probes may share a column that both declare in the same words, as `overflow_pct_float16`.
    """
    owners: dict[tuple[str, str], _Owner] = {}
    for name, probe in probes.items():
        table = recorder_of(probe).table
        if table != ACTIVATIONS and (table in (*tables.OF_A_RUN, *_FOLDERS) or not NAME.fullmatch(table)):
            raise InputError(f"probe.{name}: its table {table!r} is one of the run itself. Give it another name")
        for column, meaning in _columns(probe).items():
            if column in tables.places(table):
                raise InputError(f"probe.{name}: its column {column!r} is one of every row of {table}. Rename it")
            owner = owners.setdefault((table, column), _Owner(name, meaning))
            if owner.meaning != meaning:
                raise InputError(
                    f"probe.{name}: its column {column!r} is that of probe.{owner.probe}, whose values it would "
                    f"replace. Rename it, or leave probe.{owner.probe} out"
                )


def _columns(probe: AnyProbe) -> dict[str, object]:
    """The columns of a probe by name, with what they mean. Without a declaration it measures a small array."""
    if isinstance(probe, Declaring):
        return {column.name: column for column in probe.adds}
    return dict.fromkeys(_measured(probe), type(probe))


def _measured(probe: AnyProbe) -> Sequence[str]:
    """Names of the scalars of a small array; none where the probe needs other arrays, as one of streams does."""
    if isinstance(probe, StreamProbe):
        return []
    array = mx.ones((1, 4, 4))
    try:
        if CALL in probe.ports:
            scalars: Mapping[str, Any] = cast(CallProbe, probe).measure([array, array], array)
        else:
            scalars = cast(Probe, probe).measure(array)
        return [str(name) for name in scalars]
    except Exception:  # made for other arrays; what it raises in the run is reported there
        return []
