"""Settings become dataclasses with the same checks everywhere, and are stated once."""

import math
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from precision_lab.analysis.gate.bands import Margin
from precision_lab.errors import InputError, first_line
from precision_lab.lab.measures import LatencySpec, PinnedSpec, TeacherSpec
from precision_lab.settings import checked, is_positive

CONF = Path(__file__).parents[1] / "conf"


@dataclass(frozen=True)
class Example:
    name: str
    count: int = 3
    scale: float = 0.5
    whole: bool = False


def test_a_whole_number_becomes_an_integer():
    made = checked(Example, {"name": "a", "count": 20.0, "scale": 2})
    assert made == Example("a", 20, 2)
    assert type(made.count) is int
    list(range(made.count))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nmae": "a"}, "Unknown setting 'nmae'. Did you mean name"),
        ({}, "Setting 'name' is missing"),
        ({"name": "a", "count": 2.5}, "count is 2.5, expected a whole number like 3"),
        ({"name": "a", "count": True}, "count is True"),
        ({"name": "a", "count": "2"}, "count is '2'"),
        ({"name": "a", "count": math.inf}, "count is inf"),
        ({"name": "a", "scale": math.nan}, "scale is nan"),
        ({"name": "a", "scale": None}, "scale is None"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(InputError, match=message):
        checked(Example, values)


@pytest.mark.parametrize(("value", "expected"), [(1, True), (0.1, True), (0, False), (True, False), ("1", False)])
def test_positive_numbers(value, expected):
    assert is_positive(value) is expected
    assert not is_positive(math.nan)
    assert not is_positive(math.inf)


def test_values_in_the_configuration_are_the_defaults_of_the_classes():
    config = OmegaConf.load(CONF / "config.yaml")
    for kind, node in ((LatencySpec, config.latency), (TeacherSpec, config.drift.teacher), (PinnedSpec, config.pinned)):
        defaults = kind()
        for field in fields(kind):
            expected = getattr(defaults, field.name)
            given = node.get(field.name, expected)
            assert given == expected or (not given and not expected), f"{kind.__name__}.{field.name}"
    gate = OmegaConf.load(CONF / "gate.yaml").gate
    assert Margin() == Margin(gate.margin_bits, gate.margin_spread, gate.headroom_bits)


def test_the_first_line_of_an_error():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(RuntimeError("")) == "RuntimeError"
