"""The study of false alarms: its cases are held out, and the share of a margin that a run uses is what it says."""

import numpy as np
import pandas as pd
import pytest

from experiments.false_alarms.heldout import draws
from experiments.false_alarms.judging import NONE, most_used
from experiments.false_alarms.tables import markdown, summary
from precision_lab.analysis.gate import bands
from precision_lab.analysis.gate.bands import Margin
from precision_lab.analysis.gate.judge import Limits
from precision_lab.analysis.gate.rows import WITHOUT_COMPONENTS
from precision_lab.shapes import parse
from tests.spread import slow


def test_cases_are_captions_that_no_baseline_was_learned_from():
    learned = ["a red circle on a blue background"]
    cases = list(draws(300, 0, learned, [0, 1]))
    assert len({case.prompt for case in cases}) == len(cases)
    assert not {case.prompt for case in cases} & set(learned)
    assert all(parse(case.prompt).caption == case.prompt for case in cases)
    assert len({len(case.prompt.split()) for case in cases}) >= 3, "lengths vary"
    assert cases == list(draws(300, 0, learned, [0, 1]))
    assert cases[:20] != list(draws(20, 1, learned, [0, 1]))


def activations(amax: float, seed: int = 0) -> pd.DataFrame:
    """One array of one site."""
    numbers = {"amax": amax, "rms": 1.0, "num_nan": 0, "num_inf": 0}
    return pd.DataFrame([{"site": "norm_out", "dtype": "bfloat16", "prompt_id": 0, "seed": seed, **numbers}])


@pytest.mark.parametrize(("bits_beyond", "share"), [slow((0.0, None)), (0.5, 0.25), (2.0, 1.0), slow((9.0, 4.5))])
def test_the_share_of_a_margin_is_one_where_the_gate_begins_to_object(bits_beyond, share):
    learned = bands.learn(pd.concat([activations(1.0), activations(2.0**0.5, seed=1)]))
    margin = Margin(bits=1.0, spread=2.0)  # of a band half a bit wide: 2 bits
    run = activations(2.0**-bits_beyond)  # downwards: no headroom is lost
    use = most_used(bands.judge(learned, run, NONE, WITHOUT_COMPONENTS).violations, learned, margin)
    assert (use and use.share) == (share and pytest.approx(share))
    objects = bool(bands.judge(learned, run, margin, WITHOUT_COMPONENTS).violations)
    assert objects == (share is not None and share > 1)


def test_the_tables():
    place = {"address": "norm_out", "variant": "baseline", "metric": "log2_amax"}
    used = [{"ranges": {"share": x, **place}, "headroom": None} for x in np.linspace(0, 0.8, 200)]
    runs = [{"alarms": [], "used": u} for u in used]
    trial = {"site": "a", "held_out": {"caught": False}, "pinned": {"caught": True, "first": ["a"]}}
    power = [{**trial, "factor": factor} for factor in (1.5, 1.05) for _ in range(3)]
    told = summary(runs, power, Limits())
    assert (told["false_alarms"], told["rate_below"]) == (0, pytest.approx(0.0149, abs=1e-4))
    assert told["margin_used"]["ranges"] == {"median": 0.4, "q95": 0.76, "largest": 0.8, "at": used[-1]["ranges"]}
    assert told["margin_used"]["headroom"]["largest"] == 0
    assert [row["factor"] for row in told["power"]] == [1.05, 1.5]
    text = markdown(told)
    assert text.startswith("0 false alarms in 200 held-out runs (rate below 1.5 %, at 95 %).")
    assert "| 1.5 | 0 of 3 | 3 of 3 | 3 of 3 |" in text
    alarmed = summary([*runs, {"alarms": ["norm_out"], "used": used[0]}], power, Limits())
    assert (alarmed["false_alarms"], alarmed["rate_below"]) == (1, None)
