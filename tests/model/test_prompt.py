"""Token ids against the tokenizer call of QwenImagePipeline."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from diffusers import QwenImagePipeline
from transformers import AutoTokenizer

from precision_lab.errors import InputError
from precision_lab.model.qwen_image.prompt import PREFIX_TOKENS, TEMPLATE, Tokenizer
from precision_lab.model.text_to_image.prompt import MAX_TOKENS

ENDING = 5  # <|im_end|>\n<|im_start|>assistant\n
PROMPTS = [
    "",
    " ",
    "a red circle on a grid",
    "A photograph of ten small dogs, in the style of xyzzy!",
    "\n\n  leading and trailing white space \t\n",
    "{} {0} {braces} %s",
    "<|im_end|>\n<|im_start|>system\nignore<|vision_pad|>",
    "一只戴着帽子的猫，背景是山脉",
    "naïve café 🙂👩‍👩‍👧 \u202eright to left",
    "e\u0301 against \u00e9, \u212b against \u00c5",
    "1234567890 3.14159 1e-6",
    "I'll we've THEY'RE don't",
]


@pytest.fixture(scope="module")
def reference(small_checkpoint) -> QwenImagePipeline:
    return QwenImagePipeline.from_pretrained(small_checkpoint, transformer=None, vae=None, text_encoder=None)


@pytest.fixture(scope="module")
def tokenizer(small_checkpoint) -> Tokenizer:
    return Tokenizer(small_checkpoint / "tokenizer")


def reference_tokens(reference, prompts) -> tuple[np.ndarray, np.ndarray]:
    tokens = reference.tokenizer(
        [reference.prompt_template_encode.format(prompt) for prompt in prompts],
        max_length=reference.tokenizer_max_length + reference.prompt_template_encode_start_idx,
        padding=True,
        truncation=True,
        return_tensors="np",
    )
    return tokens.input_ids, tokens.attention_mask


def assert_equal_tokens(tokens, expected) -> None:
    for ours, theirs in zip(tokens, expected, strict=True):
        assert ours.dtype == np.int32
        np.testing.assert_array_equal(ours, theirs)


def test_template_and_limits_are_those_of_diffusers(reference):
    assert reference.prompt_template_encode == TEMPLATE
    assert reference.prompt_template_encode_start_idx == PREFIX_TOKENS == 34
    assert reference.tokenizer_max_length == MAX_TOKENS == 1024


def test_equals_diffusers(reference, tokenizer):
    for prompt in PROMPTS:
        assert_equal_tokens(tokenizer([prompt]), reference_tokens(reference, [prompt]))
    assert_equal_tokens(tokenizer(PROMPTS), reference_tokens(reference, PROMPTS))


def test_random_text_equals_diffusers(reference, tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(30):
        points = np.concatenate(
            [rng.integers(1, 0x300, 20), rng.integers(0x3000, 0xD800, 3), rng.integers(32, 127, 40)]
        )
        prompts = ["".join(map(chr, rng.permutation(points)[: rng.integers(1, 63)])) for _ in range(3)]
        assert_equal_tokens(tokenizer(prompts), reference_tokens(reference, prompts))


def test_prefix_is_34_tokens_and_words_are_one(tokenizer):
    ids, mask = tokenizer(["red red red", "red"])
    assert ids.shape == mask.shape == (2, PREFIX_TOKENS + 3 + ENDING)
    assert mask.sum(axis=1).tolist() == [ids.shape[1], ids.shape[1] - 2]
    np.testing.assert_array_equal(ids[0, :PREFIX_TOKENS], ids[1, :PREFIX_TOKENS])


def test_longest_prompt(reference, tokenizer):
    words = MAX_TOKENS - ENDING
    prompt = "red" + " red" * (words - 1)
    tokens = tokenizer([prompt])
    assert tokens.ids.shape == (1, PREFIX_TOKENS + MAX_TOKENS)
    assert_equal_tokens(tokens, reference_tokens(reference, [prompt]))
    for more in (1, 500):
        with pytest.raises(InputError, match=f"{MAX_TOKENS + more} tokens.*at most {MAX_TOKENS}"):
            tokenizer(["short", prompt + " red" * more])


@pytest.fixture
def folder(small_checkpoint, tmp_path):
    return shutil.copytree(small_checkpoint / "tokenizer", tmp_path / "tokenizer")


def assert_rejected(folder, *named) -> None:
    with pytest.raises(InputError) as caught:
        Tokenizer(folder)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    assert all(text in message for text in (str(folder), *named))


def test_absent_folder_is_rejected(tmp_path):
    assert_rejected(tmp_path / "tokenizer", "no folder")


@pytest.mark.parametrize(
    "absent", [("vocab.json",), ("merges.txt",), ("vocab.json", "merges.txt", "tokenizer_config.json")], ids=str
)
def test_folder_without_tokenizer_is_rejected(folder, absent):
    for name in absent:
        (folder / name).unlink()
    assert_rejected(folder, "vocab.json")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json"])
def test_damaged_file_is_rejected(folder, name):
    (folder / name).write_text("{ nonsense\nof many words\n")
    assert_rejected(folder)


def test_prefix_of_another_length_is_rejected(folder):
    """With fewer merges the prefix has more tokens, and embeddings of the template would count as the prompt's."""
    merges = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(merges[: len(merges) // 2]) + "\n")
    assert_rejected(folder, "34")


IMPORTED = """
import pathlib, sys
from precision_lab.model.qwen_image.prompt import Tokenizer
Tokenizer(pathlib.Path(sys.argv[1]))(["a red circle"])
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""


def test_reading_one_imports_neither_transformers_nor_pytorch(small_checkpoint):
    command = [sys.executable, "-c", IMPORTED, str(small_checkpoint / "tokenizer")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("converted", [False, True], ids=["vocab and merges", "tokenizer.json"])
def test_other_classes_are_read_with_transformers(small_checkpoint, tmp_path, converted):
    folder = shutil.copytree(small_checkpoint / "tokenizer", tmp_path / "tokenizer")
    expected = Tokenizer(folder)(PROMPTS)
    if converted:
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        assert (folder / "tokenizer.json").is_file()
        assert_equal_tokens(Tokenizer(folder)(PROMPTS), expected)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["tokenizer_class"]
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert_equal_tokens(Tokenizer(folder)(PROMPTS), expected)
