"""A checkpoint in the published layout, as a folder or on the Hugging Face Hub, and its components."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from precision_lab.device import page_cache
from precision_lab.errors import InputError
from precision_lab.model import paging, weights
from precision_lab.model.qwen_image.config import (
    Config,
    SchedulerConfig,
    TextEncoderConfig,
    TransformerConfig,
    VAEConfig,
)
from precision_lab.model.qwen_image.inflate import exponent, inflate_streams
from precision_lab.model.qwen_image.pipeline import Pipeline
from precision_lab.model.qwen_image.prompt import Tokenizer
from precision_lab.model.qwen_image.sampler import Sampler
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
EMBEDDED = "package://"
_CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SAMPLE = 1 << 20

C = TypeVar("C", bound=Config)
M = TypeVar("M", Transformer, TextEncoder, VAE)


@dataclass
class Checkpoint:
    """A folder in the layout of Qwen/Qwen-Image; each component loads alone.

    `weights_dtype` rounds the stored weights (None: as stored). `inflate`, a power of two, then multiplies the
    transformer's residual streams (see `inflate`). With `stream` the blocks of the transformer and the layers of the
    text encoder are read whenever they are called (see `model.paging`). `ignored` collects, by component, the
    configuration keys and tensors that were accepted without being used.
    """

    folder: Path
    weights_dtype: mx.Dtype | None = None
    inflate: float = 1.0
    stream: bool = False
    ignored: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stream:
            paging.check(self.inflate)
        index = weights.read_json(self.folder / "model_index.json")
        self.weights = str(index.get("_weights", "published"))

    def transformer(self, dtype: mx.Dtype) -> Transformer:
        """Raises InputError where the inflated weights do not fit the dtype they are stored in, or `dtype`."""
        model = Transformer(self.transformer_config())
        self._filled(model, "transformer", mx.float32, None)  # as they are stored
        inflate_streams(model, self.inflate, dtype)
        weights.cast(model, None, dtype)
        self._stream(model, "transformer_blocks", "transformer", dtype, None)
        return model

    def text_encoder(self, dtype: mx.Dtype) -> TextEncoder:
        model = TextEncoder(self._config("text_encoder", TextEncoderConfig))
        self._filled(model, "text_encoder", dtype, TextEncoder.sanitize)
        self._stream(model, "layers", "text_encoder", dtype, TextEncoder.sanitize)
        return model

    def vae(self, dtype: mx.Dtype) -> VAE:
        model = VAE(self._config("vae", VAEConfig))
        return self._filled(model, "vae", dtype, VAE.sanitize)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder / "tokenizer")

    def scheduler(self) -> SchedulerConfig:
        return self._config("scheduler", SchedulerConfig, "scheduler_config.json")

    def transformer_config(self) -> TransformerConfig:
        return self._config("transformer", TransformerConfig)

    def pipeline(self, dtype: mx.Dtype) -> Pipeline:
        """All components, computing in `dtype`."""
        vae = self.vae(dtype)
        return Pipeline(
            tokenizer=self.tokenizer(),
            text_encoder=self.text_encoder(dtype),
            transformer=self.transformer(dtype),
            vae=vae,
            sampler=Sampler(vae.config),
            scheduler=self.scheduler(),
            config=self.transformer_config(),
            dtype=dtype,
        )

    def fingerprint(self) -> str:
        """SHA-256 over names, sizes and contents of the weight files; of files over 64 MiB the first and last MiB.

        Inflated weights are others: the factor counts unless it is 1.
        """
        digest = hashlib.sha256()
        if power := exponent(self.inflate):
            digest.update(f"inflate 2^{power}\n".encode())
        for part in ("text_encoder", "transformer", "vae"):
            for file in weights.shards(self.folder / part):
                size = file.stat().st_size
                digest.update(f"{part}/{file.name}:{size}\n".encode())
                with file.open("rb") as stream:
                    if size <= 64 * _SAMPLE:
                        digest.update(stream.read())
                    else:
                        digest.update(stream.read(_SAMPLE))
                        stream.seek(-_SAMPLE, 2)
                        digest.update(stream.read())
        return digest.hexdigest()

    def _config(self, part: str, kind: type[C], name: str = "config.json") -> C:
        config, ignored = kind.from_dict(weights.read_json(self.folder / part / name))
        self._ignore(part, ignored)
        return config

    def _filled(self, model: M, part: str, dtype: mx.Dtype, sanitize: weights.Sanitize | None) -> M:
        self._ignore(part, weights.load(model, self.folder / part, sanitize))
        weights.cast(model, self.weights_dtype, dtype)
        return model

    def _stream(
        self, model: nn.Module, blocks: str, part: str, dtype: mx.Dtype, sanitize: weights.Sanitize | None
    ) -> None:
        if not self.stream:
            return

        def read() -> dict[str, mx.array]:
            tensors = weights.read(self.folder / part)
            return sanitize(tensors)[0] if sanitize else tensors

        def fit(tensor: mx.array) -> mx.array:
            holder = nn.Module()
            holder.tensor = tensor
            weights.cast(holder, self.weights_dtype, dtype)
            return holder.tensor

        places: Any = weights.extents(self.folder / part)
        places = sanitize(places)[0] if sanitize else places

        def used(names: Iterable[str]) -> None:
            page_cache.forget(places[name] for name in names if name in places)

        fits = page_cache.keeps(sum(place.nbytes for place in places.values()))
        paging.page(model, blocks, read, fit, None if fits else used)

    def _ignore(self, part: str, names: tuple[str, ...] | list[str]) -> None:
        known = self.ignored.setdefault(part, [])
        known.extend(name for name in names if name not in known)


def locate(source: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint: `source` if it is one, of an embedded one package://NAME, else a snapshot of the Hub.

    Downloads only what text-to-image needs, resumes interrupted downloads, and uses the local cache alone under
    HF_HUB_OFFLINE=1. Raises InputError for anything that is neither, and for a Hub that cannot be reached.
    """
    if source.startswith(EMBEDDED):
        source = str(_CHECKPOINTS / source.removeprefix(EMBEDDED))
    # os.path: a Path raises exceptions of its own for names that no file can have
    folder = os.path.expanduser(source)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, "model_index.json")):
            raise InputError(f"{source} is not a checkpoint: no model_index.json in it")
        return Path(folder)
    if os.path.exists(folder) or not _HUB_ID.fullmatch(source):
        raise InputError(f"model.path {source!r} is neither a folder nor a Hub id like Qwen/Qwen-Image")
    return _download(source, revision)


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(_NEEDED)))
    except GatedRepoError as error:
        raise InputError(f"model.path {repo!r}: its owner grants access on the Hub; ask there and log in") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"model.path {repo!r}: no such repository on the Hub, nor a folder of that name") from error
    except RevisionNotFoundError as error:
        raise InputError(f"model.path {repo!r}: no revision {revision!r} on the Hub") from error
    except Exception as error:  # those of the transport share no base class and change with the Hub's library
        raise InputError(
            f"model.path {repo!r}: not in the local cache and cannot be fetched from the Hub ({type(error).__name__}). "
            "Give a folder, or run once with a network"
        ) from error
