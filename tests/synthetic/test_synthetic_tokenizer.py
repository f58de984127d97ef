"""The generated tokenizer as transformers reads it."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_lab.model.qwen_image.prompt import PREFIX_TOKENS, TEMPLATE
from precision_lab.synthetic import tokenizer

PREFIX = TEMPLATE.split("{}")[0]
WORDS = tokenizer.vocabulary(TEMPLATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.write(folder, WORDS)
    return folder


@pytest.fixture(scope="module", params=["AutoTokenizer", "Qwen2Tokenizer"])
def loaded(request: pytest.FixtureRequest, folder: Path) -> transformers.PreTrainedTokenizerBase:
    return getattr(transformers, request.param).from_pretrained(folder)


def test_the_templates_prefix_has_the_published_number_of_tokens(loaded) -> None:
    ids = loaded(PREFIX)["input_ids"]
    assert len(ids) == PREFIX_TOKENS == 34
    # a prompt after it does not change its tokens
    assert loaded(TEMPLATE.format("two red circles"))["input_ids"][:34] == ids


@pytest.mark.parametrize(
    "caption",
    ["two red circles on a blue background, left", "Seven tiny yellow stars above a dark green square.", "a cat"],
)
def test_words_of_plain_captions_are_single_tokens(loaded, caption: str) -> None:
    words = len(caption.split()) + caption.count(",") + caption.count(".")
    assert len(loaded(caption)["input_ids"]) == words


def test_any_text_survives(loaded) -> None:
    @settings(max_examples=200, deadline=None)
    @given(st.text())
    def check(text: str) -> None:
        text = unicodedata.normalize("NFC", text)
        assert loaded.decode(loaded(text)["input_ids"]) == text

    check()


def test_ids_are_dense_and_the_vocabulary_small(loaded) -> None:
    size = WORDS.size
    assert size == len(loaded) <= 1500
    assert sorted(loaded.get_vocab().values()) == list(range(size))


def test_special_tokens_have_their_ids_and_roles(loaded) -> None:
    for token in tokenizer.SPECIAL_TOKENS:
        assert loaded.convert_tokens_to_ids(token) == WORDS.special(token)
        assert loaded(token)["input_ids"] == [WORDS.special(token)]
    assert loaded.pad_token == "<|endoftext|>"
    assert loaded.eos_token == "<|im_end|>"
