"""Expressions of other programs find what Python's own find, without ever taking long."""

import fnmatch
import re
import time

import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.recipes.expressions import Rules
from precision_lab.recipes.globs import expression, wildcards
from precision_lab.record.glob import compile_glob

ATOMS = ("a", "b", ".", "[ab]", "[^a]", r"\.", r"\d", "[0-3x]", "c", r"\w")
QUANTIFIERS = ("*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?")


def drawn(rng, depth=0):
    kind = rng.random()
    if depth > 3 or kind < 0.45:
        return str(rng.choice(ATOMS))
    if kind < 0.75:
        inner = "|".join(drawn(rng, depth + 1) for _ in range(2))
        return f"({inner})" if rng.random() < 0.5 else f"(?:{inner})"
    if kind < 0.9:
        return f"({drawn(rng, depth + 1)}){rng.choice(QUANTIFIERS)}"
    return "".join(drawn(rng, depth + 1) for _ in range(3))


@pytest.mark.parametrize("seed", range(5))
def test_the_first_rule_that_is_found_is_that_of_python(seed):
    rng = np.random.default_rng(seed)
    for _ in range(30):
        rules = [f"{rng.choice(['', '^'])}({drawn(rng)}){rng.choice(['', '$'])}" for _ in range(rng.integers(1, 5))]
        found = Rules(rules, "rules")
        for _ in range(10):
            name = "".join(rng.choice(list("abc.12x"), rng.integers(0, 8)))
            expected = next((n for n, rule in enumerate(rules) if re.search(rule, name)), None)
            assert found.first(name) == expected, (rules, name)


@pytest.mark.parametrize(
    "text",
    [
        "(a",
        "a)",
        "[a",
        "a**",
        "(?=a)",
        "(?P<n>a)",
        "a{3",
        r"\1",
        "*a",
        "a{2,1}",
        "a{0}",
        "a{999}",
        "(" * 60,
        "a\\",
        "^a|b$",
        "x^",
        "(a{100}){100}" * 20,
    ],
)
def test_what_is_outside_the_grammar_is_said(text):
    with pytest.raises(InputError, match="file: cannot read the expression") as error:
        Rules([text], "file")
    assert "\n" not in str(error.value)


def test_no_expression_takes_long():
    hostile = ["(a|a)" * 30 + "b", "(a+)+$", "(.*a){20}x", "(a*)*(a*)*b", "(a|ab|abc|.)*c$"]
    names = ["a" * 200, "ab" * 100, *("a" * n + "!" for n in range(100))]
    start = time.perf_counter()
    rules = Rules(hostile, "file")
    for name in names:
        rules.first(name)
    many = Rules([f"(.*{letter}){{50}}" for letter in "abcdefgh" * 20], "file")
    texts = np.random.default_rng(0).choice(list("abcdefgh"), (1000, 60))
    with pytest.raises(InputError, match="file: its expressions leave too much open"):
        list(map(many.first, map("".join, texts)))
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("glob", ["a.*.b", "x.{0,3..5}.attn.to_{q,out.0}", "{img,txt}_mod.1", "only"])
def test_a_glob_and_its_expression_name_the_same(glob):
    names = [
        "a.1.b",
        "a.1.2.b",
        "x.0.attn.to_q",
        "x.4.attn.to_out.0",
        "x.6.attn.to_q",
        "img_mod.1",
        "only",
        "onlyx",
        "x.33.attn.to_q",
    ]
    for name in names:
        assert (re.fullmatch(expression(glob), name) is None) == (compile_glob(glob).fullmatch(name) is None)


@pytest.mark.parametrize("pattern", ["*", "img_*", "*.attn.*", "a?c", "a.b", "*_mod.1", "(x)+"])
def test_wildcards_are_those_of_fnmatch(pattern):
    rules = Rules([f"^{wildcards(pattern)}$"], "list")
    for name in ("img_in", "a.b", "axb", "abc", "t.0.attn.to_q", "t.0.img_mod.1", "", "(x)+", "xx"):
        assert (rules.first(name) is not None) == fnmatch.fnmatchcase(name, pattern)
