"""Malformed command lines and yaml files: a refusal that names the culprit, in time, with nothing left behind."""

import random
import shutil

import pytest

from tests.malformed import commands
from tests.malformed.command_line import generated
from tests.malformed.harness import Input, assert_stated, call, call_process, dry, write
from tests.spread import thinned

__all__ = ["dry"]

QUICK = generated(120, seed=1)
MANY = generated(900, seed=2)
OF_COMMANDS = commands.listed(seed=5)
COMMANDS = random.Random(4).sample(OF_COMMANDS, 12)
MANY_COMMANDS = [*OF_COMMANDS, *generated(500, seed=5, kinds=(commands.of_another_type, commands.of_unknown_names))]
OF_NO_RUN = ("compare", "report", "device", "models", "recipe", "completion", "submit")
PROCESSES = [given for given in generated(100, seed=3) if given.culprits is not None][:10]


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


def names(inputs):
    return [
        f"{number} {given.name}".encode("ascii", "backslashreplace").decode()[:80]
        for number, given in enumerate(inputs)
    ]


@pytest.mark.parametrize("given", thinned(QUICK, keep=24), ids=names(QUICK))
def test_malformed(judge, given):
    judge(given)


@pytest.mark.slow
@pytest.mark.parametrize("given", MANY, ids=names(MANY))
def test_many_malformed(judge, given):
    judge(given)


@pytest.mark.parametrize("given", thinned(COMMANDS, keep=6), ids=names(COMMANDS))
def test_malformed_commands(judge, given):
    judge(given)


@pytest.mark.slow
@pytest.mark.parametrize("given", MANY_COMMANDS, ids=names(MANY_COMMANDS))
def test_many_malformed_commands(judge, given):
    judge(given)


@pytest.mark.slow
@pytest.mark.parametrize("given", PROCESSES, ids=names(PROCESSES))
def test_malformed_in_a_process(judge, given):
    given = Input(given.name, [a for a in given.arguments if "\0" not in a], given.culprits, given.files)
    judge(given, call_process)


def test_the_commands_have_many_inputs():
    assert len({tuple(given.arguments) for given in MANY_COMMANDS}) >= 660
