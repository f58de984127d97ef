"""The section on a factorial: every effect with its interval, and the reason where there are none."""

from dataclasses import replace

import pytest

from precision_lab.record.summary import Summary
from precision_lab.report import write
from precision_lab.report.figures import factorial as figures


def with_factorials(run, *factorials):
    replace(Summary.read(run), factorials=factorials).write(run)
    return run


def factorial(**changes):
    effect = {
        "factors": ["wide_residual"],
        "aliases": [],
        "effect": 0.31,
        "ci95": [0.27, 0.36],
        "finding": "less drift",
    }
    pair = {"factors": ["wide_residual", "wide_norms"], "aliases": ["-wide_rope"], "finding": "inconclusive"}
    pair |= {"effect": 1.02, "ci95": None, "ci95_reason": "one case"}
    record = {"base": "baseline", "factors": ["wide_residual", "wide_norms"], "drift": {}, "effects": [effect, pair]}
    return {**record, "noise_floor": 0.06, **changes}


@pytest.fixture
def only_the_factorial(drawing_only):
    drawing_only(figures.draw)


@pytest.mark.usefixtures("only_the_factorial")
def test_effects_are_listed_and_drawn(small_run):
    run = with_factorials(small_run(), factorial())
    page = write(run).read_text()
    for said in (
        "<h2>Factorial</h2>",
        "wide_<wbr>residual x wide_<wbr>norms",
        "[0.270, 0.360]",
        "-10.17".replace("-", "\u2212"),
    ):
        assert said in page
    assert "not told apart from -wide_<wbr>rope" in page
    assert (run / "figures" / "factorial.svg").stat().st_size


@pytest.mark.usefixtures("only_the_factorial")
def test_without_effects_there_is_a_reason(small_run):
    lost = factorial(effects=[], effects_reason="the drift of baseline+x is lost", noise_floor=None)
    page = write(with_factorials(small_run(), lost)).read_text()
    assert page.count("the drift of baseline+x is lost") == 2


@pytest.mark.usefixtures("only_the_factorial")
def test_a_run_without_a_factorial_has_no_section(small_run):
    page = write(small_run()).read_text()
    assert "Factorial" not in page
    assert "interaction" not in page
