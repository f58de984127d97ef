"""The harness of malformed inputs: it sees every fault that it looks for."""

import time

import pytest

from precision_lab.errors import InputError
from tests.malformed import harness
from tests.malformed.harness import Accepted, Outcome, assert_stated, call, call_process, write

REFUSED = Outcome(2, err="image.height is 'x', expected a number\n", seconds=0.1)


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """Calls a command line that is planted."""

    def plant(action, **settings):
        monkeypatch.setattr(harness, "main", action)
        return call(["a=1"], tmp_path, **settings)

    return plant


def refuse(arguments):
    raise InputError("not caught")


def hang(arguments):
    time.sleep(5)


def write_something(arguments):
    from pathlib import Path

    Path("left").mkdir()
    return 2


def accept(arguments):
    raise Accepted


@pytest.mark.parametrize("action", [refuse, hang, write_something, lambda arguments: 2, lambda arguments: 1 / 0])
def test_faults_are_seen(planted, action):
    with pytest.raises(AssertionError):
        assert_stated(planted(action, patience=0.2), None)


def test_a_valid_input_is_a_result(planted):
    assert_stated(planted(accept), None)
    with pytest.raises(AssertionError):
        assert_stated(planted(accept), ["a"])


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(1, err="image.height"),
        Outcome(3, err="image.height"),
        Outcome(2, err="something is wrong"),
        Outcome(2, err="image.height\n2\n3"),
        Outcome(2, err="image.height", left=["a"]),
        Outcome(2, err="image.height", seconds=21),
        Outcome(2, err="Traceback: image.height"),
        Outcome(2, err="image.height is 3, expected one of 8, 16. Available: 16, 8."),
    ],
)
def test_refusals_that_are_none(outcome):
    assert_stated(REFUSED, ["image.height"])
    with pytest.raises(AssertionError):
        assert_stated(outcome, ["image.height"])


@pytest.mark.slow
def test_a_process_is_judged_alike(tmp_path):
    write({"conf/x.yaml": "a: 1\n"}, tmp_path)
    outcome = call_process(["dtpye=3"], tmp_path)
    assert_stated(outcome, ["dtpye"])
