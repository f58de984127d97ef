"""Reads the tokenizers of checkpoints.

A Qwen2 tokenizer is built with the `tokenizers` library alone, because importing transformers takes two seconds. The
result equals that of transformers 5 (`models/qwen2/tokenization_qwen2.py`): byte-level byte-pair encoding of NFC text.
Other classes of tokenizers are read with transformers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from precision_lab.errors import InputError, first_line
from precision_lab.record.files import read_json

_QWEN2 = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")


class Encoder(Protocol):
    """Maps a text to token ids; `pad` is the id of the padding token."""

    @property
    def pad(self) -> int: ...

    def __call__(self, text: str) -> list[int]: ...


def read_tokenizer(folder: Path) -> Encoder:
    """Reads the tokenizer in a folder. Raises InputError if the folder has no readable tokenizer."""
    if not folder.is_dir():
        raise InputError(f"no folder {folder}, expected that of a tokenizer")
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, Mapping):
        raise InputError(f"{path}: expected an object")
    try:
        return _Qwen2(folder, config) if config.get("tokenizer_class") in _QWEN2 else _Other(folder)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise InputError(
            f"{folder}: no tokenizer that can be read: {first_line(error)}\n"
            "Expected vocab.json, merges.txt and tokenizer_config.json, or tokenizer.json"
        ) from error


class _Qwen2:
    """A Qwen2 tokenizer, from tokenizer.json or from vocab.json and merges.txt."""

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
        from tokenizers import Regex as SplitAt

        whole = folder / "tokenizer.json"
        if whole.is_file():
            self._tokenizer = Tokenizer.from_file(str(whole))
        else:
            model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
            self._tokenizer = Tokenizer(model)
            self._tokenizer.normalizer = normalizers.NFC()
            self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(SplitAt(_SPLIT), behavior="isolated", invert=False),
                    pre_tokenizers.ByteLevel(
                        add_prefix_space=bool(config.get("add_prefix_space", False)), use_regex=False
                    ),
                ]
            )
        added = {int(number): entry for number, entry in dict(config.get("added_tokens_decoder") or {}).items()}
        for number, entry in sorted(added.items()):
            token = AddedToken(entry["content"], **{flag: bool(entry.get(flag, False)) for flag in _FLAGS})
            self._tokenizer.add_special_tokens([token]) if token.special else self._tokenizer.add_tokens([token])
            actual = self._tokenizer.token_to_id(entry["content"])
            if actual != number:
                raise InputError(f"{folder}: token {entry['content']!r} is number {actual}, expected {number}")
        pad = config.get("pad_token") or "<|endoftext|>"
        content = pad["content"] if isinstance(pad, Mapping) else pad
        self.pad = self._tokenizer.token_to_id(content) or 0

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids


class _Other:
    """Any other tokenizer that transformers can read without running code from the checkpoint."""

    def __init__(self, folder: Path):
        # transformers would warn that PyTorch is missing; reading a tokenizer does not need it
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        import transformers

        transformers.logging.set_verbosity_error()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        self.pad = self._tokenizer.pad_token_id or 0

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids
