"""The grammar of patterns is bounded: no pattern takes memory or time out of proportion."""

import re
import time

import pytest

from precision_lab.errors import InputError
from precision_lab.record.glob import compile_glob

PATHS = [f"transformer_blocks.{i}.attn.to_out.0.{'x' * 40}" for i in range(60)]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blocks.{0..99999999}", "has more than 4096 numbers"),
        ("blocks.{0..99999999999999999999}", "has more than 4096 numbers"),
        ("blocks.{-9999999..0}", "has more than 4096 numbers"),
        ("{0..99}." * 3 + "x", "has more than 4096 alternatives"),
        ("{a,b}" * 20, "has more than 4096 alternatives"),
        ("a" * 5000, "has 5000 characters, expected at most 4096"),
        ("{" * 500, "unmatched brace"),
        ("x.{" + "a" * 4000, "unmatched brace"),
        ("{3..1}", "is empty"),
    ],
)
def test_patterns_out_of_proportion_are_refused_at_once(pattern, message):
    started = time.monotonic()
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        compile_glob(pattern)
    assert time.monotonic() - started < 1
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("pattern", ["**." * 40 + "nothing", "**." * 40 + "**x", "{**,**}.{**,**}.{**,**}.nothing"])
def test_many_double_stars_take_no_time(pattern):
    started = time.monotonic()
    try:
        found = compile_glob(pattern)
    except InputError:
        return
    assert not any(found.fullmatch(path) for path in PATHS)
    assert time.monotonic() - started < 1


def test_double_stars_in_a_row_are_one():
    for pattern in ("**", "**.**", "**.**.**", "**.attn.**.**", "**.**.attn.**"):
        single = re.sub(r"\*\*(\.\*\*)+", "**", pattern)
        for path in (*PATHS, "attn", "a.attn", "attn.b", "a.attn.b.c"):
            assert bool(compile_glob(pattern).fullmatch(path)) == bool(compile_glob(single).fullmatch(path))


def test_nested_and_empty_alternatives():
    assert compile_glob("a{,b{c,d}}").fullmatch("abd")
    assert compile_glob("a{,b{c,d}}").fullmatch("a")
    assert compile_glob("{" * 50 + "a" + "}" * 50).fullmatch("a")
