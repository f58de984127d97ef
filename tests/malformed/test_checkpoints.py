"""Malformed checkpoints: refused in one or two lines that name the file or the key, with nothing left behind."""

from dataclasses import replace
from itertools import product

import pytest

from precision_lab.synthetic import PRESETS, make
from tests.malformed.checkpoints import copied, mutate
from tests.malformed.harness import assert_stated, call, dry
from tests.spread import thinned

__all__ = ["dry"]

SMALL = ("image.height=32", "image.width=32", "sampler.steps=1", "prompts=[a star]", "seeds=[0]", "pinned.cases=null")
MODELS = ("micro", "micro_21")
QUICK, ALL = 40, 350
CASES = [*product(["micro"], range(QUICK)), *product(["micro_21"], range(QUICK // 2))]


@pytest.fixture(scope="module")
def original(request, tmp_path_factory):
    """A checkpoint of one block and one layer; the folder has the name of a model that reads it."""
    micro = PRESETS[request.param]
    folder = tmp_path_factory.mktemp("checkpoints") / request.param
    shape = replace(
        micro,
        transformer=replace(micro.transformer, num_layers=1),
        text_encoder=replace(micro.text_encoder, num_hidden_layers=1),
    )
    make(shape, folder)
    return folder


def check(original, tmp_path, seed):
    folder = copied(original, tmp_path / "given")
    mutation = mutate(folder, seed)
    work = tmp_path / "work"
    work.mkdir()
    outcome = call([f"model={original.name}", f"model.path={folder}", *SMALL, "out=run"], work)
    if outcome.code == 2 or mutation.fatal:
        culprits = tuple(name if name == folder.name else f"{folder.name}/{name}" for name in mutation.culprits[1:])
        assert_stated(outcome, (*culprits, mutation.culprits[0]))
    else:
        assert_stated(outcome, None)


@pytest.mark.parametrize(("original", "seed"), thinned(CASES, keep=6), indirect=["original"])
def test_malformed(original, tmp_path, dry, seed):
    check(original, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("original", MODELS, indirect=True)
@pytest.mark.parametrize("seed", range(QUICK // 2, ALL))
def test_malformed_at_length(original, tmp_path, dry, seed):
    check(original, tmp_path, seed)


@pytest.mark.parametrize("original", MODELS, indirect=True)
def test_the_original_is_valid(original, tmp_path, dry):
    outcome = call([f"model={original.name}", f"model.path={original}", *SMALL, "out=run"], tmp_path)
    assert outcome.code == 0, outcome
