"""Malformed command lines and yaml files: a refusal that names the culprit, in time, with nothing left behind."""

import random
import shutil
from functools import cache

import pytest

from tests.malformed import commands
from tests.malformed.command_line import generated
from tests.malformed.harness import Input, assert_stated, call, call_process, dry, write
from tests.spread import thinned

__all__ = ["dry"]

OF_NO_RUN = ("compare", "report", "device", "models", "recipe", "completion", "submit")


# a test names its input by a number: making them composes all commands, which takes seconds


@cache
def quick():
    return generated(120, seed=1)


@cache
def many():
    return generated(900, seed=2)


@cache
def of_commands():
    return commands.listed(seed=5)


@cache
def some_of_commands():
    return random.Random(4).sample(of_commands(), 12)


@cache
def many_of_commands():
    return [*of_commands(), *generated(500, seed=5, kinds=(commands.of_another_type, commands.of_unknown_names))]


@cache
def of_processes():
    return [given for given in generated(100, seed=3) if given.culprits is not None][:10]


@pytest.fixture
def judge(dry, tmp_path, small_checkpoint, monkeypatch):
    """Calls the command line with an input, and judges what came of it."""
    monkeypatch.delenv("PRECISION_LAB_DEBUG", raising=False)

    def judged(given: Input, calling=call):
        folder = tmp_path / "work"
        folder.mkdir()
        write(given.files, folder)
        runs = not any(argument in OF_NO_RUN for argument in given.arguments)
        own = any(argument.lstrip("+~").startswith("model") for argument in given.arguments)
        dry.plans = given.deep
        arguments = [*given.arguments, *([f"model.path={small_checkpoint}"] if runs and not own else [])]
        assert_stated(calling(arguments, folder), given.culprits)
        shutil.rmtree(folder)

    return judged


@pytest.mark.parametrize("number", thinned(range(120), keep=10))
def test_malformed(judge, number):
    judge(quick()[number])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(900))
def test_many_malformed(judge, number):
    judge(many()[number])


@pytest.mark.parametrize("number", thinned(range(12), keep=6))
def test_malformed_commands(judge, number):
    judge(some_of_commands()[number])


@pytest.mark.slow
@pytest.mark.parametrize("first", range(70))
def test_many_malformed_commands(judge, first):
    for given in many_of_commands()[first::70]:
        judge(given)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_malformed_in_a_process(judge, number):
    given = of_processes()[number]
    given = Input(given.name, [a for a in given.arguments if "\0" not in a], given.culprits, given.files)
    judge(given, call_process)


def test_the_commands_have_many_inputs():
    assert len({tuple(given.arguments) for given in many_of_commands()}) >= 660
