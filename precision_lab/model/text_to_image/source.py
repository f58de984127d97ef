"""The source of the weights of a text-to-image model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from precision_lab.errors import InputError, expected
from precision_lab.model.casting import fixed_names
from precision_lab.model.folder import is_published, named
from precision_lab.model.stored.locating import lone_weights
from precision_lab.model.text_to_image.checkpoint import Checkpoint, locate
from precision_lab.model.text_to_image.pipeline import Dtypes
from precision_lab.model.text_to_image.settings import Settings
from precision_lab.model.text_to_image.sizes import Sizes, sizes
from precision_lab.model.text_to_image.subject import Case, TextToImage
from precision_lab.recipes.naming import Naming
from precision_lab.record import manifest
from precision_lab.record.layout import Layout
from precision_lab.record.origin import PUBLISHED, UNKNOWN
from precision_lab.settings import checked

DTYPES = ("float32", "bfloat16", "float16")
STORED = "stored"
_WORDS = np.array(["red", "a", "circle", "two", "on", "blue", "small", "star", "white", "left"])


class Part(NamedTuple):
    """A component, the stem of its weight files, and the prefix of its stored tensor names before module paths."""

    module: nn.Module
    stem: str
    prefix: str


class Drawn(NamedTuple):
    """A random case for proofs."""

    prompt: str
    seed: int
    settings: Mapping[str, Any]


@dataclass
class Source:
    """Loads a checkpoint of one model.

    name: the name of the configuration; None: that of the path. path: a folder, a Hub id, or package://NAME for an
    embedded checkpoint; or the weights of the transformer alone, in a single file or a folder. base: the checkpoint
    that such weights belong to, whose other components are used; not read otherwise. revision: that of the Hub
    repository. weights_dtype: the dtype to which stored weights are rounded (None: as stored). inputs: "stored" rounds
    the inputs of linears as the files state or as their formats have it; None leaves them alone. stream: whether blocks
    are read from disk at each call (paging), for a model larger than memory.

    Raises InputError for invalid or incompatible settings. The checkpoint is located when it is first needed.
    """

    kind: ClassVar[type[Checkpoint]]
    """The class of the checkpoints."""
    settings: ClassVar[type[Settings]]
    """The class of the settings of a case."""
    publisher: ClassVar[str]
    """The beginning of the Hub ids of the published repositories."""
    preset: ClassVar[str]
    """The synthetic checkpoint of published size that the command `models` writes."""
    namings: ClassVar[Mapping[str, Naming]] = MappingProxyType({})
    """How other programs name the modules of the transformer, by dialect (`recipes.dialects`)."""
    varied: ClassVar[tuple[str, ...]] = ("steps", "sigmas", "schedule", "guidance_scale", "negative_prompt")
    """The settings that may differ between the variants of a run: those that leave pictures of the same size."""
    dtyped: ClassVar[tuple[str, ...]] = Dtypes._fields
    """The components that may have a dtype of their own. The operations of sampling have that of the transformer."""

    name: str | None = None
    path: str | None = None
    base: str | None = None
    revision: str | None = None
    weights_dtype: str | None = None
    inputs: str | None = None
    stream: bool = False
    _loaded: dict[Dtypes, TextToImage] = field(default_factory=dict, init=False, repr=False)
    _parts: dict[tuple[str, mx.Dtype], nn.Module] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError(
                f"model={self.name or '???'} has no path. Give model.path=DIR; "
                f"`python -m precision_lab models make={self.preset} to=DIR` writes a synthetic checkpoint"
            )
        self.path = str(self.path)
        if self.weights_dtype is not None and self.weights_dtype not in DTYPES:
            choices = expected(DTYPES, str(self.weights_dtype))
            raise InputError(f"model.weights_dtype is {self.weights_dtype!r}, {choices}")
        if self.inputs not in (None, STORED):
            raise InputError(f"model.inputs is {self.inputs!r}, expected {STORED} or null")
        if not isinstance(self.stream, bool):
            raise InputError(f"model.stream is {self.stream!r}, expected true or false")

    @classmethod
    def sizes(cls, configs: Mapping[str, Any]) -> Sizes:
        """The memory of a run of a checkpoint with these configurations, by component."""
        return sizes(cls.kind, configs)

    def folder(self) -> Path:
        """The folder of the checkpoint or, of weights alone, that of their base; downloaded if necessary.

        Raises InputError if neither exists, or if weights alone have no base.
        """
        assert self.path is not None
        if not self.given:
            return self.find(self.path)
        if not self.base:
            raise InputError(
                f"model.path {self.path!r} holds the weights of the {' and the '.join(self.given)} alone. Give the "
                f"checkpoint that has the other components as model.base=DIR_OR_HUB_ID, like {self.publisher}"
            )
        if lone_weights(self.base):
            raise InputError(f"model.base {self.base!r} holds weights alone, expected a whole checkpoint")
        return self.find(self.base)

    @cached_property
    def given(self) -> Mapping[str, Path]:
        """The weights that are not in `folder`, by component; empty if `path` is a whole checkpoint."""
        assert self.path is not None
        return lone_weights(self.path)

    def find(self, source: str) -> Path:
        """The folder of the whole checkpoint that `source` names."""
        return locate(source, self.revision, self.kind.tokenizer_folder)

    @cached_property
    def opened(self) -> Any:
        """The checkpoint, of class `kind`."""
        return self.kind(self.folder(), self._rounded(), self.stream, **self._alone)

    @property
    def _alone(self) -> dict[str, Any]:
        """The arguments of a checkpoint that weights in formats of other programs need."""
        return {"given": self.given, "inputs": self.inputs == STORED}

    def _rounded(self) -> mx.Dtype | None:
        return None if self.weights_dtype is None else getattr(mx, self.weights_dtype)

    @property
    def layout(self) -> Layout:
        return self.opened.layout()

    @property
    def checkpoint(self) -> manifest.Checkpoint:
        assert self.path is not None
        return manifest.Checkpoint(
            name=self.name or named(self.path),
            path=self.path,
            fingerprint=self._fingerprint,
            weights=self._origin,
            weights_dtype=self.weights_dtype or "as stored",
            settings={} if self.inputs is None else {"inputs": self.inputs},
            resources={"stream": self.stream},
            notes=[],
            ignored=self.opened.ignored,
        )

    def steps(self, case: Case) -> int:
        settings = checked(self.settings, case.settings)
        if not isinstance(case.prompt, str) or not case.prompt.strip():
            raise InputError(f"prompts holds {case.prompt!r}, expected text")
        pipeline = self.load(mx.float32).pipeline
        grid = pipeline.grid(settings.height, settings.width)
        pipeline.levels(settings, grid)
        pipeline.tokens([case.prompt, settings.negative_prompt])
        return settings.steps

    def memory(self, case: Case) -> int:
        """Bytes of a generation in fp32 at the least (see `precision_lab.lab.subject.least_memory`).

        q, k, v, attention, feed-forward and stream of a block, or two maps of the VAE's last stage, whichever is more.
        """
        settings, config = checked(self.settings, case.settings), self.opened.transformer_config()
        pipeline = self.load(mx.float32).pipeline
        grid = pipeline.grid(settings.height, settings.width)
        block = 9 * grid.height * grid.width * config.dim
        maps = 2 * settings.height * settings.width * pipeline.vae.config.pixel_channels
        return 4 * max(block, maps)

    def remarks(self, case: Case) -> list[str]:
        """What a user should know of the settings of a case: guidance that is off, prompts that are cut."""
        settings = checked(self.settings, case.settings)
        texts = {"prompt": case.prompt} | (
            {"sampler.negative_prompt": settings.negative_prompt} if settings.guided else {}
        )
        counts = self.load(mx.float32).pipeline.tokenizer.counts(list(texts.values()))
        return settings.remarks({what: (text, n) for (what, text), n in zip(texts.items(), counts, strict=True)})

    def load(self, dtype: mx.Dtype, components: Mapping[str, mx.Dtype] = MappingProxyType({})) -> TextToImage:
        """The subject that computes in `dtype`, and in those of `components`; a second call returns the same object.

        A component whose weights are all stored in its dtype is that of an fp32 subject that was loaded before. Paged
        weights are not shared: they are not in memory, so their dtype is unknown.
        """
        dtypes = Dtypes(*(components.get(part, dtype) for part in self.dtyped))
        if dtypes not in self._loaded:
            transformer, text_encoder, vae = map(self._part, self.dtyped, dtypes)
            self._loaded[dtypes] = TextToImage(self.opened.assembled(transformer, text_encoder, vae, dtypes))
        return self._loaded[dtypes]

    def _part(self, part: str, dtype: mx.Dtype) -> Any:
        """A component that computes in `dtype`."""
        if (part, dtype) not in self._parts:
            stored = None if self.stream else self._parts.get((part, mx.float32))
            fits = stored is not None and _dtypes(stored) == {dtype}
            self._parts[part, dtype] = stored if fits else getattr(self.opened, part)(dtype)
        return self._parts[part, dtype]

    def files(self) -> tuple[str, ...]:
        """Names of the files of a complete checkpoint outside its folders."""
        return ("model_index.json",)

    def folders(self) -> tuple[str, ...]:
        """Names of the folders of a complete checkpoint."""
        return ("scheduler", self.kind.tokenizer_folder, "vae", "text_encoder", "transformer")

    def apart(self) -> tuple[str, ...]:
        """The components whose weights are not in `folder`."""
        return tuple(self.given)

    def parts(self) -> dict[str, Part]:
        """The components whose linears can be written quantised, with weights in their stored dtype."""
        return {
            "text_encoder": Part(self.opened.text_encoder(mx.float32), "model", "model."),
            "transformer": Part(self.opened.transformer(mx.float32), "diffusion_pytorch_model", ""),
        }

    def draws(self, count: int, seed: int) -> list[Drawn]:
        """Random cases for proofs: prompts of different lengths, small odd grids, schedules of different lengths."""
        rng = np.random.default_rng(seed)
        pixels = self.load(mx.float32).pipeline.multiple
        cases = []
        for _ in range(count):
            prompt = " ".join(rng.choice(_WORDS, rng.integers(2, 9)))
            rows, columns, steps = (int(n) for n in rng.integers((2, 2, 2), (6, 6, 21)))
            settings = {"steps": steps, "height": rows * pixels, "width": columns * pixels}
            cases.append(Drawn(prompt, int(rng.integers(2**31)), settings))
        return cases

    @property
    def _origin(self) -> str:
        """The label in the folder, or published if the publisher's repository was named."""
        assert self.path is not None
        label = self.opened.origin
        return PUBLISHED if label == UNKNOWN and is_published(self.path, self.publisher) else label

    @cached_property
    def _fingerprint(self) -> str:
        return self.opened.fingerprint()


def _dtypes(module: nn.Module) -> set[mx.Dtype]:
    """The dtypes of the parameters that a cast changes; packed weights are integers."""
    fixed = fixed_names(module)
    arrays = [array for name, array in tree_flatten(module.parameters()) if name not in fixed]
    return {array.dtype for array in arrays if mx.issubdtype(array.dtype, mx.floating)}
