"""Probes whose columns have one name: refused before the run, unless they are one quantity in the same words."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from precision_lab.errors import InputError
from precision_lab.lab.probe_columns import check
from precision_lab.probes.absorption import Absorption
from precision_lab.probes.exponents import Exponents
from precision_lab.probes.ranges import RangeCatalogue
from precision_lab.probes.what_if import WhatIf
from precision_lab.record.columns import Column


@dataclasses.dataclass(frozen=True)
class Constant:
    """Measures 7 as `name`, and says nothing about its columns."""

    name: str
    sites: Sequence[str] = ("**",)
    ports: Sequence[str] = ("out",)

    def measure(self, *arrays: Any) -> dict[str, float]:
        return {self.name: 7}


class OfAnotherClass(Constant):
    pass


@dataclasses.dataclass(frozen=True)
class Declared(Constant):
    @property
    def adds(self) -> Sequence[Column]:
        return [Column(self.name, meaning="another quantity")]


@dataclasses.dataclass(frozen=True)
class Awkward(Constant):
    def measure(self, *arrays: Any) -> dict[str, float]:
        raise RuntimeError("made for other arrays")


class _Recorder:
    sites, ports, rows = ("**",), ("out",), ()

    def __init__(self, table: str):
        self.table = table

    def observe(self, batch: object) -> None: ...


@dataclasses.dataclass(frozen=True)
class OwnTable:
    table: str
    sites: Sequence[str] = ("**",)
    ports: Sequence[str] = ("out",)

    def recorder(self) -> _Recorder:
        return _Recorder(self.table)


RANGE = RangeCatalogue(("**",))


@pytest.mark.parametrize("kind", [Constant, Declared])
@pytest.mark.parametrize("first", [True, False])
def test_a_column_of_another_probe_is_refused(kind, first):
    pair = {"range": RANGE, "theirs": kind("amax")}
    with pytest.raises(InputError, match="its column 'amax' is that of probe") as caught:
        check(pair if first else dict(reversed(pair.items())))
    assert {"probe.range", "probe.theirs"} <= {word.rstrip(":,") for word in str(caught.value).split()}
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["variant", "seed", "order", "dtype", "numel", "site"])
@pytest.mark.parametrize("ports", [("out",), ("call",)])
def test_a_column_of_every_row_is_refused(name, ports):
    with pytest.raises(InputError, match=rf"probe\.theirs: its column '{name}' is one of every row"):
        check({"theirs": Constant(name, ports=ports)})


@pytest.mark.parametrize("table", ["drift", "latency", "sketches", "images", "reference", "../up", "a/b", ""])
def test_a_table_of_the_run_is_refused(table):
    with pytest.raises(InputError, match="its table"):
        check({"theirs": OwnTable(table)})


def test_what_may_share_a_name():
    check(
        {"range": RANGE, "what_if": WhatIf(("**",)), "absorption": Absorption(("**",)), "exponents": Exponents(("**",))}
    )
    check({"a": RANGE, "b": RangeCatalogue(("norm_out",), formats=("float16",))})
    check({"a": Constant("peak"), "b": Constant("peak", sites=("norm_out",))})
    check({"theirs": Awkward("amax"), "range": RANGE, "own": OwnTable("own")})
    with pytest.raises(InputError, match="its column 'peak'"):
        check({"a": Constant("peak"), "b": OfAnotherClass("peak")})
