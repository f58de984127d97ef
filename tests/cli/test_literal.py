"""A resolved configuration, read again from its text, says the same."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError

from precision_lab.cli.literal import literal


def without_interpolations(text):
    return re.sub(r"\$+\{+", "", text)


@given(st.lists(st.text("\\${}a:.'\"[ \n雪") | st.none() | st.booleans() | st.integers(), max_size=4))
def test_text_that_looks_like_an_interpolation_survives(values):
    config = OmegaConf.create()
    config.plain = "a"
    config.prompts = [without_interpolations(v) if isinstance(v, str) else v for v in values]
    assert OmegaConf.to_container(literal(config), resolve=True) == OmegaConf.to_container(config, resolve=True)


@given(st.text("\\${}a ", max_size=8), st.integers(0, 3))
def test_escaped_text_is_read_as_meant_however_often_it_is_written(tail, backslashes):
    tail = without_interpolations(tail)
    meant = "a " + "\\" * backslashes + "${b} " + tail
    written = OmegaConf.create({"prompts": ["a " + "\\" * (2 * backslashes + 1) + "${b} " + tail]})
    assert written.prompts[0] == meant
    once = literal(written)
    again = literal(OmegaConf.create(OmegaConf.to_yaml(once)))
    assert once.prompts[0] == again.prompts[0] == meant
    assert OmegaConf.to_yaml(once) == OmegaConf.to_yaml(again)


def test_interpolations_are_resolved():
    config = OmegaConf.create({"a": 1, "b": "${a}", "c": {"d": ["${b} \\${a}"]}})
    once = literal(config)
    assert OmegaConf.to_container(once, resolve=True) == {"a": 1, "b": 1, "c": {"d": ["1 ${a}"]}}
    with pytest.raises(InterpolationKeyError):
        literal(OmegaConf.create({"a": "${nothing}"}))
