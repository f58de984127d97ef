"""Language models of mlx-lm as a subject: each step feeds one token of the prompt, the result is the logits.

The text is fed token by token, whatever the model would have predicted (teacher forcing), so every variant sees the
same input at every step. Any checkpoint folder that `mlx_lm.load` reads is supported, including quantised ones. Code in
the folder is never executed. Needs the extra `lm`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from precision_lab.errors import InputError, first_line
from precision_lab.instrument.scope import scope
from precision_lab.model import weights
from precision_lab.model.folder import fingerprint, located, named, origin_of
from precision_lab.model.tokenizer import Encoder, read_tokenizer
from precision_lab.record.layout import Layout, Result, Stream
from precision_lab.record.manifest import Checkpoint
from precision_lab.settings import checked

_LAYERS = re.compile(r"(num|n)_(\w+_)?layers?")
_MOST_LAYERS = 1024


@dataclass(frozen=True)
class Settings:
    """Settings of a case.

    steps: number of tokens at the end of the text that are fed one by one; the tokens before them are fed together.
    """

    steps: int = 16

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"sampler.steps is {self.steps}, expected at least 1")


class Head(nn.Module):
    """Gives the logits (1, 1, V) an address."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Identity()


class State(NamedTuple):
    """Tokens (T,), the position of the next token to feed, and the state of the cache of each layer."""

    tokens: mx.array
    position: int
    caches: tuple[Any, ...]


class Step(NamedTuple):
    """A step of this subject. The result is the output, the logits (1, 1, V); a token has no noise level."""

    output: mx.array
    state: State
    sigma: None = None

    @property
    def result(self) -> mx.array:
        return self.output


@dataclass
class Subject:
    """A language model in one dtype."""

    model: nn.Module
    tokens: Callable[[str], Sequence[int]]
    head: Head = field(default_factory=Head)

    @property
    def components(self) -> dict[str, nn.Module]:
        return {"model": self.model, "loop": self.head}

    def start(self, case: Any) -> State:
        tokens = self.tokens(case.prompt)
        before = len(tokens) - _steps(case, tokens)
        state = State(mx.array(list(tokens)), before, tuple(cache.state for cache in self._caches()))
        return self._feed(state._replace(position=0), before)[1] if before else state

    def step(self, state: State, number: int) -> Step:
        with scope(step=number):
            logits, following = self._feed(state, 1)
            return Step(self.head.logits(logits[:, -1:]), following)

    def picture(self, state: State) -> None:
        return None

    def _feed(self, state: State, count: int) -> tuple[mx.array, State]:
        caches = self._caches()
        for cache, saved in zip(caches, state.caches, strict=True):
            if state.position:  # a cache writes into its arrays, so it gets new arrays that share the data
                cache.state = tree_map(lambda x: x.reshape(x.shape) if isinstance(x, mx.array) else x, saved)
        end = state.position + count
        logits = self.model(state.tokens[None, state.position : end], cache=caches)
        return logits, State(state.tokens, end, tuple(cache.state for cache in caches))

    def _caches(self) -> list[Any]:
        from mlx_lm.models.cache import make_prompt_cache

        return list(make_prompt_cache(self.model))


def _check_sizes(config: Mapping[str, Any], file: Path) -> None:
    """Raises InputError for a number of layers that nobody builds: mlx-lm makes each before it reads a weight."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_sizes(value, file)
        elif isinstance(value, int) and _LAYERS.fullmatch(key) and not 1 <= value <= _MOST_LAYERS:
            raise InputError(f"{file}: {key} is {_short(value)}, expected 1 to {_MOST_LAYERS}")


def _short(value: int) -> str:
    return str(value) if value.bit_length() < 64 else f"an integer of {value.bit_length()} bits"


def _steps(case: Any, tokens: Sequence[int]) -> int:
    return min(checked(Settings, case.settings).steps, len(tokens))


@dataclass
class LanguageModel:
    """Loads an mlx-lm checkpoint.

    name: of the configuration; None: that of the path. path: a folder or a Hub id. revision: of the Hub repository.
    """

    name: str | None = None
    path: str | None = None
    revision: str | None = None
    _loaded: dict[mx.Dtype, Subject] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("model=mlx_lm has no path. Give model.path=DIR_OR_HUB_ID of an mlx-lm model")

    @cached_property
    def layout(self) -> Layout:
        model = self.load(mx.float32).model
        modules = {id(module): path for path, module in model.named_modules()}
        first = modules[id(model.layers[0])]
        holder = first.rpartition(".")[0].rpartition(".")[0]
        ends = [f"{holder}.norm" if holder else "norm", "lm_head"]
        embedding = next(
            path for path, m in model.named_modules() if isinstance(m, nn.Embedding | nn.QuantizedEmbedding)
        )
        return Layout(
            components=("model", "loop"),
            default="model",
            result=Result("loop:logits", "logits", distribution=True),
            blocks=(f"model:{first.rpartition('.')[0]}.*",),
            depth=len(model.layers),
            streams={"residual": Stream("residual stream", sites="**", entry=embedding)},
            before=("model",),  # which reads the tokens before the first step
            exits=tuple(path for path in ends if path in modules.values()),
        )

    @cached_property
    def checkpoint(self) -> Checkpoint:
        assert self.path is not None
        file = self.folder / "config.json"
        origin = origin_of(weights.read_json(file), file)
        return Checkpoint(self.name or named(self.path), self.path, fingerprint({"": self._weights()}), origin)

    def _weights(self) -> list[Path]:
        """The files that mlx-lm reads, with an index or without."""
        return sorted(self.folder.glob("model*.safetensors"))

    def steps(self, case: Any) -> int:
        return _steps(case, self.tokens(case.prompt))

    def load(self, dtype: mx.Dtype) -> Subject:
        if dtype not in self._loaded:
            from mlx_lm.utils import load_model

            file = self.folder / "config.json"
            _check_sizes(weights.read_json(file), file)
            try:
                model, _ = load_model(self.folder, lazy=True)
            except Exception as error:  # of the files: mlx-lm checks few of them, and raises what they lead to
                raise InputError(f"model.path={self.path}: mlx-lm cannot load it: {first_line(error)}") from error
            model.set_dtype(dtype)
            self._loaded[dtype] = Subject(model, self.tokens)
        return self._loaded[dtype]

    def tokens(self, text: str) -> Sequence[int]:
        """The token ids of `text`. Raises InputError for a text without tokens."""
        tokens: Sequence[int] = self._tokenizer(text)
        if not tokens:
            raise InputError(f"prompts holds {text!r}, expected text")
        return tokens

    @cached_property
    def folder(self) -> Path:
        assert self.path is not None
        if importlib.util.find_spec("mlx_lm") is None:
            raise InputError("model=mlx_lm needs mlx-lm: pip install 'precision-lab[lm]'")
        return located(self.path, self.revision, "config.json", ("*.json", "*.safetensors", "tokenizer*", "*.txt"))

    @cached_property
    def _tokenizer(self) -> Encoder:
        return read_tokenizer(self.folder)
