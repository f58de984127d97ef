"""A checkpoint of diffusers for text to image, in a folder, and what loads its components."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.device import page_cache
from precision_lab.errors import InputError
from precision_lab.model import paging, weights
from precision_lab.model.casting import cast, cast_array, fixed_names
from precision_lab.model.config import Config
from precision_lab.model.folder import fingerprint, located, origin_of
from precision_lab.model.stored.architecture import Architecture, identify
from precision_lab.model.stored.base import StoredWeights
from precision_lab.model.stored.reading import open_weights
from precision_lab.model.text_to_image.kinds import Kinds
from precision_lab.model.text_to_image.scheduler import SchedulerConfig
from precision_lab.record.origin import UNKNOWN

PARTS = ("text_encoder", "transformer", "vae")
"""The components that have weights."""

C = TypeVar("C", bound=Config)
M = TypeVar("M", bound=nn.Module)


class Fit(NamedTuple):
    """A number in the transformer's configuration, and what it must equal, in words and as a number."""

    key: str
    actual: int
    other: str
    expected: int


@dataclass
class Checkpoint:
    """A folder in the layout of diffusers; each component can be loaded separately.

    `given` names the file or folder of a component's weights, where they are not in `folder`, the base: a single file,
    or a folder that holds one component. Names and shapes must be those that the configuration in the base expects.

    `weights_dtype` rounds the stored weights (None: as stored). `stream` turns on paging: the blocks of the transformer
    and the layers of the text encoder are read at each call (see `model.paging`). `inputs` rounds the inputs of linears
    whose files state it (see `stored.base.StoredLinear`). `ignored` collects, by component, the configuration keys and
    tensors that were accepted but not used.

    Raises InputError if the folder has no valid model_index.json, or if that names another pipeline or a component of
    another class.
    """

    kinds: ClassVar[Kinds]
    """The classes that the subclass reads."""
    modules: ClassVar[Mapping[str, type[nn.Module]]]
    """The module of each component, which takes its configuration."""
    tokenizer_folder: ClassVar[str] = "tokenizer"

    folder: Path
    weights_dtype: mx.Dtype | None = None
    stream: bool = False
    ignored: dict[str, list[str]] = field(default_factory=dict)
    given: Mapping[str, Path] = field(default_factory=dict, kw_only=True)
    inputs: bool = field(default=False, kw_only=True)
    index: Mapping[str, Any] = field(init=False, repr=False)
    """The content of model_index.json."""
    origin: str = field(init=False, repr=False)
    """The origin of the weights."""
    _opened: dict[str, StoredWeights] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        file = self.folder / "model_index.json"
        self.index = weights.read_json(file)
        with naming(file):
            self.kinds.check_pipeline(self.index)
        self.origin = UNKNOWN if self.given else origin_of(self.index, file)

    def scheduler(self) -> SchedulerConfig:
        return self.config("scheduler", SchedulerConfig, "scheduler_config.json")

    def fingerprint(self) -> str:
        """SHA-256 over the names, sizes and contents of the weight files (see `model.folder.fingerprint`)."""
        return fingerprint({part: self._files(part).files for part in PARTS}, self.altered())

    def altered(self) -> str:
        """How the weights differ from those in the files, as part of the fingerprint; empty if they do not."""
        return ""

    def config(self, part: str, kind: type[C], name: str = "config.json") -> C:
        """The configuration of a component. Raises InputError for an invalid one."""
        file = self.folder / part / name
        with naming(file):
            config, ignored = kind.from_dict(weights.read_json(file))
        self._ignore(part, ignored)
        return config

    def check_fit(self, *fits: Fit) -> None:
        """Raises InputError for a component that does not fit the others."""
        for key, actual, other, expected in fits:
            if actual != expected:
                raise InputError(
                    f"{self.folder / 'transformer' / 'config.json'}: {key} is {actual}, expected {other}, {expected}"
                )

    def load(
        self,
        model: M,
        part: str,
        dtype: mx.Dtype,
        sanitize: weights.Sanitize | None = None,
        blocks: str | None = None,
        paged: str | None = None,
    ) -> M:
        """The module with the weights of a component, which are cast to `dtype` unless they are narrower.

        blocks: the list in it that is paged if `stream` is on. paged: the same, if the caller calls `page`.
        """
        paged = (blocks or paged) if self.stream else None
        self._ignore(part, weights.load_files(model, self._files(part), sanitize, paged))
        cast(model, self.weights_dtype, dtype)
        if blocks is not None:
            self.page(model, blocks, part, dtype, sanitize)
        return model

    def page(
        self, model: nn.Module, blocks: str, part: str, dtype: mx.Dtype, sanitize: weights.Sanitize | None = None
    ) -> None:
        """Pages the list `blocks` of a loaded module if `stream` is on."""
        if not self.stream:
            return

        files, fixed = self._files(part), fixed_names(model)

        def read() -> MutableMapping[str, mx.array]:
            tensors = files.read()
            return sanitize(tensors)[0] if sanitize else tensors

        def fit(name: str, tensor: mx.array) -> mx.array:
            return tensor if name in fixed else cast_array(tensor, self.weights_dtype, dtype)

        places: Any = files.extents()
        places = sanitize(places)[0] if sanitize else places

        def used(names: Iterable[str]) -> None:
            page_cache.beside(page_cache.forget, [places[name] for name in names if name in places])

        def soon(path: str) -> None:
            of_block = [place for name, place in places.items() if name.startswith(path)]
            page_cache.beside(page_cache.prefetch, of_block)

        fits = page_cache.keeps(sum(place.nbytes for place in places.values()))
        paging.page(model, blocks, read, fit, None if fits else used, soon)

    def _files(self, part: str) -> StoredWeights:
        """The weight files of a component, whose headers are read once.

        Raises InputError for files that cannot be read, and for given ones of another model than the base.
        """
        if part not in self._opened:
            files = open_weights(self.given.get(part, self.folder / part))
            if part in self.given:
                self._check_given(part, files)
            self._opened[part] = files if self.inputs else files.without_inputs()
        return self._opened[part]

    def _check_given(self, part: str, files: StoredWeights) -> None:
        """Raises InputError if the files of the transformer hold another model than the base, or another depth."""
        stored = identify(files.shapes())
        if part != "transformer" or stored is None:
            return  # the loader names the first tensor that does not fit
        config: Any = self.transformer_config()
        expected = Architecture(self.kinds.pipeline, config.num_layers, config.dim)
        if stored != expected:
            raise InputError(f"{files.source} is the transformer of {stored}; model.base {self.folder} is {expected}")

    def transformer_config(self) -> Any:
        """The configuration of the transformer, with its depth `num_layers` and its width `dim`."""
        raise NotImplementedError

    def _ignore(self, part: str, names: tuple[str, ...] | list[str]) -> None:
        known = self.ignored.setdefault(part, [])
        known.extend(name for name in names if name not in known)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Context manager that begins the message of an InputError with the name of `file`."""
    try:
        yield
    except InputError as error:
        raise error if str(error).startswith(str(file)) else InputError(f"{file}: {error}") from error


def locate(source: str, revision: str | None, tokenizer_folder: str) -> Path:
    """The folder of a checkpoint (see `model.folder.located`); downloads only the files that text-to-image needs."""
    needed = [f"{part}/{name}" for part in PARTS for name in ("config.json", "*.safetensors*")]
    files = ["model_index.json", "scheduler/scheduler_config.json", f"{tokenizer_folder}/*", *needed]
    return located(source, revision, "model_index.json", files)
