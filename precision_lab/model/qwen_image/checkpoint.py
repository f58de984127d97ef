"""Loads a checkpoint in the published layout, from a folder or the Hugging Face Hub, and its components."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.device import page_cache
from precision_lab.errors import InputError
from precision_lab.model import paging, weights
from precision_lab.model.config import Config
from precision_lab.model.folder import fingerprint, located, origin_of
from precision_lab.model.qwen_image import kinds
from precision_lab.model.qwen_image.config import TextEncoderConfig, TransformerConfig, VAEConfig
from precision_lab.model.qwen_image.inflate import exponent, inflate_streams
from precision_lab.model.qwen_image.pipeline import Dtypes, Pipeline
from precision_lab.model.qwen_image.prompt import Tokenizer
from precision_lab.model.qwen_image.sampler import Sampler
from precision_lab.model.qwen_image.scheduler import SchedulerConfig
from precision_lab.model.qwen_image.text_encoder import TextEncoder
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.qwen_image.vae import VAE

_NEEDED = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/*",
    *(
        f"{part}/{name}"
        for part in ("text_encoder", "transformer", "vae")
        for name in ("config.json", "*.safetensors*")
    ),
)

C = TypeVar("C", bound=Config)
M = TypeVar("M", Transformer, TextEncoder, VAE)


@dataclass
class Checkpoint:
    """A folder in the layout of Qwen/Qwen-Image; each component can be loaded separately.

    `weights_dtype` rounds the stored weights (None: as stored). `inflate`, a power of two, then multiplies the
    transformer's residual streams (see `inflate`). `stream` turns on paging: the blocks of the transformer and the
    layers of the text encoder are read at each call (see `model.paging`). `ignored` collects, by component, the
    configuration keys and tensors that were accepted but not used.

    Raises InputError if the folder has no valid model_index.json, if that names another pipeline or a component of
    another class, or if `inflate` is incompatible with `stream`.
    """

    folder: Path
    weights_dtype: mx.Dtype | None = None
    inflate: float = 1.0
    stream: bool = False
    ignored: dict[str, list[str]] = field(default_factory=dict)
    _opened: dict[str, weights.WeightFiles] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.stream:
            paging.check(self.inflate)
        file = self.folder / "model_index.json"
        index = weights.read_json(file)
        with _naming(file):
            kinds.check_pipeline(index)
        self.weights = origin_of(index, file)

    def transformer(self, dtype: mx.Dtype) -> Transformer:
        """The transformer, computing in `dtype`.

        Raises InputError if the inflated weights do not fit the dtype they are stored in, or `dtype`.
        """
        model = Transformer(self.transformer_config())
        self._load(model, "transformer", mx.float32, None)  # keeps the stored dtype
        inflate_streams(model, self.inflate, dtype)
        weights.cast(model, None, dtype)
        self._page(model, "transformer_blocks", "transformer", dtype, None)
        return model

    def text_encoder(self, dtype: mx.Dtype) -> TextEncoder:
        model = TextEncoder(self._config("text_encoder", TextEncoderConfig))
        self._load(model, "text_encoder", dtype, TextEncoder.sanitize)
        self._page(model, "layers", "text_encoder", dtype, TextEncoder.sanitize)
        return model

    def vae(self, dtype: mx.Dtype) -> VAE:
        model = VAE(self._config("vae", VAEConfig))
        return self._load(model, "vae", dtype, VAE.sanitize)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder / "tokenizer")

    def scheduler(self) -> SchedulerConfig:
        return self._config("scheduler", SchedulerConfig, "scheduler_config.json")

    def transformer_config(self) -> TransformerConfig:
        return self._config("transformer", TransformerConfig)

    def pipeline(self, dtype: mx.Dtype) -> Pipeline:
        """All components, computing in `dtype`."""
        dtypes = Dtypes(dtype, dtype, dtype)
        return self.assembled(self.transformer(dtype), self.text_encoder(dtype), self.vae(dtype), dtypes)

    def assembled(self, transformer: Transformer, text_encoder: TextEncoder, vae: VAE, dtypes: Dtypes) -> Pipeline:
        """The pipeline of components that were loaded for `dtypes`.

        Raises InputError if they do not fit together.
        """
        config = self.transformer_config()
        self._check_fit(config, text_encoder.config, vae.config)
        return Pipeline(
            tokenizer=self.tokenizer(),
            text_encoder=text_encoder,
            transformer=transformer,
            vae=vae,
            sampler=Sampler(vae.config),
            scheduler=self.scheduler(),
            config=config,
            dtypes=dtypes,
        )

    def _check_fit(self, transformer: TransformerConfig, text: TextEncoderConfig, vae: VAEConfig) -> None:
        packed = transformer.patch_size**2 * vae.z_dim
        for key, actual, other, expected in (
            (
                "joint_attention_dim",
                transformer.joint_attention_dim,
                "hidden_size of the text encoder",
                text.hidden_size,
            ),
            ("in_channels", transformer.in_channels, "what patch_size and z_dim of the VAE give", packed),
            ("out_channels", transformer.out_channels, "z_dim of the VAE", vae.z_dim),
        ):
            if actual != expected:
                raise InputError(
                    f"{self.folder / 'transformer' / 'config.json'}: {key} is {actual}, expected {other}, {expected}"
                )

    def fingerprint(self) -> str:
        """SHA-256 over the names, sizes and contents of the weight files (see `model.folder.fingerprint`).

        It includes the factor `inflate` unless that is 1, because inflated weights differ.
        """
        power = exponent(self.inflate)
        parts = {part: weights.shards(self.folder / part) for part in ("text_encoder", "transformer", "vae")}
        return fingerprint(parts, f"inflate 2^{power}\n" if power else "")

    def _config(self, part: str, kind: type[C], name: str = "config.json") -> C:
        file = self.folder / part / name
        with _naming(file):
            config, ignored = kind.from_dict(weights.read_json(file))
        self._ignore(part, ignored)
        return config

    def _load(self, model: M, part: str, dtype: mx.Dtype, sanitize: weights.Sanitize | None) -> M:
        self._ignore(part, weights.load_files(model, self._files(part), sanitize))
        weights.cast(model, self.weights_dtype, dtype)
        return model

    def _page(
        self, model: nn.Module, blocks: str, part: str, dtype: mx.Dtype, sanitize: weights.Sanitize | None
    ) -> None:
        if not self.stream:
            return

        files = self._files(part)

        def read() -> dict[str, mx.array]:
            tensors = files.read()
            return sanitize(tensors)[0] if sanitize else tensors

        def fit(tensor: mx.array) -> mx.array:
            return weights.cast_array(tensor, self.weights_dtype, dtype)

        places: Any = files.extents()
        places = sanitize(places)[0] if sanitize else places

        def used(names: Iterable[str]) -> None:
            page_cache.forget(places[name] for name in names if name in places)

        fits = page_cache.keeps(sum(place.nbytes for place in places.values()))
        paging.page(model, blocks, read, fit, None if fits else used)

    def _files(self, part: str) -> weights.WeightFiles:
        """The weight files of a component, whose headers are read once."""
        if part not in self._opened:
            self._opened[part] = weights.WeightFiles.open(self.folder / part)
        return self._opened[part]

    def _ignore(self, part: str, names: tuple[str, ...] | list[str]) -> None:
        known = self.ignored.setdefault(part, [])
        known.extend(name for name in names if name not in known)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Context manager that begins the message of an InputError with the name of `file`."""
    try:
        yield
    except InputError as error:
        raise error if str(error).startswith(str(file)) else InputError(f"{file}: {error}") from error


def locate(source: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint (see `model.folder.located`); downloads only the files that text-to-image needs."""
    return located(source, revision, "model_index.json", _NEEDED)
