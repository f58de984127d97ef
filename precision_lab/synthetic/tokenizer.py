"""Generates a small byte-level BPE tokenizer in the format of Qwen2.

Its vocabulary has all bytes, the words of the prompt template and the words of plain captions. Each of these words is a
single token, so the prefix of the template of 1.x has 34 tokens, as with the published vocabulary. Any other text can
still be encoded and decoded.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
"""Special tokens in the order of Qwen2.5; their ids follow those of the vocabulary."""

_CAPTION_WORDS = """
a an the one two three four five six seven eight nine ten no many few several single pair row column grid
red green blue yellow orange purple pink brown black white gray grey cyan magenta dark light bright pale
circle circles square squares triangle triangles rectangle rectangles line lines dot dots stripe stripes star stars
ring rings cross crosses diamond diamonds heart ball cube shape shapes background pattern checkerboard gradient
large small big tiny huge medium thin thick long short tall wide round solid empty filled striped smooth sharp
left right top bottom middle center centre corner upper lower above below over under beside between inside outside
behind next near to on in at of with and or is are by from for not near across around horizontal vertical diagonal
cat dog bird fish horse tree flower house car boat mountain river sea sky sun moon cloud grass road city street
person man woman child face hand eye table chair cup book lamp door window sign text word letter says reading
photo photograph picture painting drawing image scene view style color quality high low detailed simple blurry
"""
"""Words that are single tokens: on their own, after a space, and capitalised."""


class Vocabulary(NamedTuple):
    """The ids of tokens, in id order, and the pairs to merge, in order of precedence, without special tokens."""

    ids: dict[str, int]
    merges: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        """Number of tokens, including special tokens."""
        return len(self.ids) + len(SPECIAL_TOKENS)

    def special(self, token: str) -> int:
        """The id of a special token."""
        return len(self.ids) + SPECIAL_TOKENS.index(token)


@cache
def vocabulary(template: str) -> Vocabulary:
    """Learns a byte-pair encoding (Sennrich et al., arXiv:1508.07909) until every word is one token.

    The words are those of captions and of `template`.

    Encoding applies the merges in the order of learning, so each word is encoded as one token.
    """
    alphabet = [_byte_symbols()[byte] for byte in sorted(_byte_symbols())]
    words = [[_byte_symbols()[byte] for byte in word.encode()] for word in _words(template)]
    merges = []
    while counts := Counter(pair for word in words for pair in pairwise(word)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = [_merge(word, best) for word in words]
    tokens = dict.fromkeys([*alphabet, *(first + second for first, second in merges)])
    return Vocabulary({token: i for i, token in enumerate(tokens)}, tuple(merges))


def write(folder: Path, words: Vocabulary, max_length: int = 131072, **settings: str) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json into `folder`.

    settings: further entries of tokenizer_config.json.
    """
    ids, merges = words
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(words.special(token)): _added(token) for token in SPECIAL_TOKENS},
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": max_length,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        **settings,
    }
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _added(token: str) -> dict[str, str | bool]:
    return {
        "content": token,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }


def _words(template: str) -> list[str]:
    """Words as the pre-tokenizer splits them: with the preceding space, or alone at the start of a line."""
    for token in SPECIAL_TOKENS:
        template = template.replace(token, "\n")
    words = dict.fromkeys(word.strip(",.:") for word in template.replace("{}", " ").split())
    words |= dict.fromkeys(_CAPTION_WORDS.split())
    forms = (form for word in words for form in (word, " " + word, word[0].upper() + word[1:]))
    return list(dict.fromkeys(forms))


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


@cache
def _byte_symbols() -> dict[int, str]:
    """The printable symbol of each byte in GPT-2: printable Latin-1 maps to itself, the rest starts at U+0100."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (byte for byte in range(256) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
