"""Mistyped names: for one wrong letter in any name, the message has the right one."""

import random

import pytest

from precision_lab import cli
from precision_lab.cli import meanings
from precision_lab.cli.paths import options
from precision_lab.errors import expected, nearest
from tests.malformed.harness import dry
from tests.spread import thinned

__all__ = ["dry"]

GROUPS = ("technique", "exp", "candidate", "model", "probe", "sampler", "claim", "sites")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789_"
NAMES = {group: options(group) for group in GROUPS} | {
    "command": [*cli.COMMANDS, cli.COMPLETION],
    "setting": list(meanings.root("gate").settings),
    "setting of a search": list(meanings.root("search").settings),
}


def typos(name, rng):
    """A letter dropped, doubled, exchanged with its neighbour, replaced and added."""
    at = rng.randrange(len(name))
    other = rng.choice(LETTERS)
    return {
        name[:at] + name[at + 1 :],
        name[:at] + name[at] + name[at:],
        name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :],
        name[:at] + other + name[at + 1 :],
        name[:at] + other + name[at:],
    } - {name, ""}


@pytest.mark.parametrize("kind", NAMES)
def test_the_right_name_is_among_those_that_are_named(kind):
    rng = random.Random(kind)
    for name in NAMES[kind]:
        for typo in typos(name, rng):
            if typo not in NAMES[kind]:
                said = nearest(typo, NAMES[kind]).removesuffix("?").removeprefix("Did you mean ")
                assert name in said.split(", "), f"{typo}: {said}"


@pytest.mark.parametrize(
    ("arguments", "right"),
    thinned(
        [
            (["sampler=lightnig4"], "lightning4"),
            (["sampler=lightning4"], "+sampler=lightning4"),
            (["exp=findngs"], "findings"),
            (["exp=findings"], "+exp=findings"),
            (["claim=s11"], "s1"),
            (["claim=s1"], "+claim@claims=s1"),
            (["technique=ffn_scalng"], "ffn_scaling"),
            (["model=micr0"], "micro"),
            (["probe=rnge"], "range"),
            (["sites=qwen_imag"], "qwen_image"),
            (["+exp=findings", "only=[float61]"], "float16"),
            (["drift.teacher.mode=ful"], "full"),
            (["latency.max_round=3"], "latency.max_rounds"),
            (["search", "candidate=[affin4]"], "affine4"),
            (["search", "strategy=knapsak"], "knapsack"),
            (["models", "make=micr"], "micro"),
            (["report", "run=x", "format=htm"], "html"),
        ],
        keep=4,
    ),
    ids=str,
)
def test_a_command_names_it(arguments, right, dry, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert right in err
    assert len(err.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_choices_that_a_message_lists_are_not_listed_again():
    assert expected(("wide", "narrow"), "zzz") == "expected one of wide, narrow"
    assert expected(("wide", "narrow"), "widr") == "expected one of wide, narrow. Did you mean wide?"
