"""Values are converted between NumPy and MLX bit for bit, and operations that MLX rejects are reported."""

import numpy as np
import pytest

from precision_lab.device.behaviour.bridge import from_mlx, on_mlx, to_mlx
from precision_lab.device.behaviour.finding import NOT_AVAILABLE, Finding, Outcome
from precision_lab.device.behaviour.storage import STORAGES
from precision_lab.device.behaviour.subjects.asking import ask


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: s.name)
def test_conversion_round_trip(storage):
    rng = np.random.default_rng(3)
    with np.errstate(over="ignore"):
        x = storage.round(np.ldexp(rng.standard_normal(1000), rng.integers(-140, 120, 1000)))
    x = np.concatenate([x, [0, -0.0, np.inf, -np.inf, np.nan, storage.max, -storage.smallest_subnormal]])
    back = from_mlx(to_mlx(x, storage))
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(np.signbit(back[:-3]), np.signbit(x[:-3]))


def test_an_operation_that_mlx_lacks():
    def unavailable(x):
        raise NotImplementedError("no kernel here\nsecond line")

    op = on_mlx(unavailable, STORAGES[0])
    finding = ask("op", STORAGES[0], "nan", lambda f: Outcome(str(f(np.ones(2))), ""), op, sizes={"n": 2})
    assert finding.outcome == Outcome(NOT_AVAILABLE, "no kernel here")
    assert finding.record()["value_reason"] == "none measured"


def test_an_error_of_a_probe_is_not_reported_as_unavailable():
    with pytest.raises(ZeroDivisionError):
        ask("op", STORAGES[0], "nan", lambda: Outcome(str(1 / 0), ""))


def test_strict_record_of_an_infinite_value():
    record = Finding("op", "float32", "overflow", Outcome("inf", "", float("inf"))).record()
    assert (record["value"], record["value_reason"]) == (None, "non-finite")
