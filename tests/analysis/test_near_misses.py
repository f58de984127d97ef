"""Near misses: finite values within some bits of the overflow of the dtype they are in."""

import pandas as pd
import pytest

from precision_lab.analysis.near_misses import COLUMNS, near_misses
from precision_lab.errors import InputError


def row(amax, dtype="float16", site="a", order=0, **changes):
    place = {"variant": "v", "prompt_id": 0, "seed": 0, "branch": "cond", "step": order, "component": "transformer"}
    return {**place, "site": site, "port": "out", "dtype": dtype, "amax": amax, "num_nan": 0, "num_inf": 0} | changes


def table(*rows):
    return pd.DataFrame(rows)


def test_bits_by_hand_and_the_nearest_moment():
    found = near_misses(table(row(65504.0 / 2), row(40000.0, order=1), row(50000.0, order=2), row(1.0, order=3)))
    assert len(found) == 1
    nearest = found.iloc[0]
    assert (nearest["near"], nearest["seen"]) == (2, 4)  # a whole bit away is not within one bit
    assert (nearest["amax"], nearest["step"]) == (50000.0, 2)
    assert nearest["bits"] == pytest.approx(0.38964, abs=1e-4)
    assert len(near_misses(table(row(65504.0 / 2)), within=1.001)) == 1


def test_headroom_is_that_of_the_arrays_own_dtype():
    rows = [row(5e7, "float32"), row(5e7, "bfloat16", site="b"), row(3e38, "bfloat16", site="c"), row(440.0, site="d")]
    assert near_misses(table(*rows))["site"].tolist() == ["c"]
    assert near_misses(table(row(5.0, "int32"))).empty


def test_what_is_not_finite_is_past_it():
    rows = [row(65000.0, num_inf=1), row(65000.0, num_nan=2, order=1), row(60000.0, order=2), row(None, order=3)]
    found = near_misses(table(*rows))
    assert (found["near"].item(), found["seen"].item(), found["amax"].item()) == (1, 1, 60000.0)


def test_sites_are_listed_nearest_first_each_variant_its_own():
    rows = [row(40000.0, site="a"), row(60000.0, site="b"), row(50000.0, site="b", variant="w")]
    found = near_misses(table(*rows))
    assert found[["variant", "site"]].to_numpy().tolist() == [["v", "b"], ["w", "b"], ["v", "a"]]


def test_nothing_to_tell():
    assert list(near_misses(table(row(1.0))).columns) == list(COLUMNS)
    assert near_misses(pd.DataFrame()).empty
    with pytest.raises(InputError, match="above 0"):
        near_misses(table(row(1.0)), within=0)
