"""What a file or a folder of weights holds, in words, and the option of `model` that runs it; no tensor is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from mlx import nn
from mlx.utils import tree_flatten

from precision_lab.errors import InputError, inline, shown
from precision_lab.model import foreign
from precision_lab.model.adapters.adapter import read_adapter
from precision_lab.model.adapters.names import names_an_adapter
from precision_lab.model.folder import local
from precision_lab.model.stored.architecture import Architecture
from precision_lab.model.stored.contents import Contents, header, held
from precision_lab.model.stored.locating import WHOLE, lone_weights
from precision_lab.model.stored.reading import open_weights
from precision_lab.model.text_to_image.source import Source

_MORE = 4
"""Names of a list that are stated."""

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Reader:
    """An option of `model`: its name, the class of its source, its path, and its base where it has one.

    published: the configuration of the transformer that the publisher of the source's models has.
    """

    name: str
    source: type[Source]
    path: str
    base: str | None
    published: Any

    @property
    def config(self) -> Any:
        """The configuration of the transformer: that of the base, or the published one."""
        return self.published if self.base is None else self.source(path=self.base).opened.transformer_config()

    @property
    def architecture(self) -> Architecture:
        return Architecture(self.source.kind.kinds.pipeline, self.config.num_layers, self.config.dim)

    def transformer(self, config: Any) -> nn.Module:
        """The transformer of a configuration, with no values yet."""
        return self.source.kind.modules["transformer"](config)


class Part(NamedTuple):
    """A component or an adapter: what it is, and what is known of it."""

    name: str
    rows: Rows


@dataclass
class Inspection:
    """The parts, remarks, and the overrides that run the weights by key; None where nothing runs them."""

    parts: list[Part] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    overrides: Mapping[str, str] | None = None


def inspect(given: str, readers: Iterable[Reader]) -> Inspection:
    """What the file or folder `given`, or package://NAME, holds, and which of `readers` runs it.

    The readers are asked for once the weights are known to be readable.

    Raises InputError for one that does not exist or is not read, with what it is.
    """
    path = Path(local(given))
    if not _exists(path):
        raise InputError(f"inspect={shown(given)}: no such file or folder, expected weights")
    if _is_adapter(path):
        return _of_adapter(given, readers)
    whole = path.is_dir() and (path / WHOLE).is_file()
    found = Inspection()
    for name, where in (_components(path) if whole else lone_weights(str(path)) or {"": path}).items():
        contents = Contents.of(open_weights(where))
        is_transformer = name in ("transformer", "")
        found.parts.append(Part(name or "weights", _rows(contents, is_transformer)))
        if is_transformer:
            _advise(found, given, contents, tuple(readers), whole)
    return found


def _exists(path: Path) -> bool:
    try:
        return path.is_file() or path.is_dir()
    except (OSError, ValueError):
        return False


def _components(folder: Path) -> dict[str, Path]:
    """The folders of weights in a whole checkpoint, by name."""
    inner = (each for each in sorted(folder.iterdir()) if each.is_dir())
    found = {each.name: each for each in inner if any(each.glob("*.safetensors*"))}
    return found or {"": folder}


def _is_adapter(path: Path) -> bool:
    """Whether the file, or the only safetensors file of a folder, names tensors like an adapter."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1 or not files[0].is_file() or foreign.kind_of(files[0]) != foreign.SAFETENSORS:
        return False
    return names_an_adapter(tensor.name for tensor in header(files[0])[0])


def _rows(contents: Contents, is_transformer: bool) -> Rows:
    total, tensors = sum(each.nbytes for each in contents.held), sum(each.tensors for each in contents.held)
    named = f", and the configuration names {shown(contents.model_type)}" if contents.model_type else ""
    unknown = f"unknown: no tensors that only a transformer of Qwen-Image has{named}"
    return [
        ("file", str(contents.source)),
        ("stored as", contents.layout),
        *([("architecture", str(contents.architecture or unknown))] if is_transformer else []),
        ("size", f"{total / 1e9:.4g} GB in {tensors} tensors, {contents.bits:.4g} bits a weight"),
        ("dtypes", ", ".join(f"{each.dtype} {each.tensors} ({each.nbytes / 1e9:.4g} GB)" for each in contents.held)),
        ("markers", ", ".join(f"{name} ({count})" for name, count in contents.markers.items()) or "none"),
        ("metadata", _listed([f"{key}={value}" for key, value in contents.metadata.items()]) or "none"),
    ]


def _advise(found: Inspection, given: str, contents: Contents, readers: Sequence[Reader], whole: bool) -> None:
    """Adds what is missing or left out, and how the weights are run."""
    architecture = contents.architecture
    if architecture is None:
        if contents.model_type:
            found.remarks.append("A language model, if mlx-lm knows its model_type.")
            found.overrides = {"model": "mlx_lm", "model.path": given}
        return
    fitting = [reader for reader in readers if reader.source.kind.kinds.pipeline == architecture.pipeline]
    shape = replace(fitting[0].published, num_layers=1)
    names = [name for name, _ in tree_flatten(fitting[0].transformer(shape).parameters())]
    missing, unknown = contents.missing(names), contents.unknown(names)
    ignored = [*contents.ignored, *unknown] if contents.partial else list(contents.ignored)
    alone = "It is the transformer alone; the rest comes from model.base."
    found.remarks += ["It is a whole checkpoint." if whole else alone, f"Ignored: {_listed(ignored) or 'nothing'}."]
    if unknown and not contents.partial:
        found.remarks.append(f"Refused, because the transformer has no such tensors: {_listed(unknown)}.")
    found.remarks.append(f"Missing: {_listed(missing) or 'nothing'}.")
    if not missing and (contents.partial or not unknown):
        found.overrides = _overrides(given, architecture, fitting, whole)


def _overrides(given: str, architecture: Architecture, readers: Sequence[Reader], whole: bool) -> dict[str, str]:
    """The overrides that run weights of `architecture`, which `readers` read."""
    default = next(reader for reader in readers if reader.base is None)
    embedded = (reader for reader in readers if reader.base is not None and reader.architecture == architecture)
    own = None if whole else next(embedded, None)
    found = {"model": (own or default).name, "model.path": given}
    if whole or own is not None:
        return found
    fits = default.architecture == architecture
    other = f"DIR_OF_{architecture.depth}_BLOCKS_{architecture.width}_WIDE"
    return found | {"model.base": default.path if fits else other}


def _of_adapter(given: str, readers: Iterable[Reader]) -> Inspection:
    adapter = read_adapter(given)
    total = len(adapter.layers)
    fits = {reader.name: adapter.fitting(linears) for reader, linears in _linears(readers)}
    best, count = max(fits.items(), key=lambda item: item[1])
    stored = held(header(adapter.file)[0])
    rows = [
        ("file", str(adapter.file)),
        ("stored as", f"{', '.join(adapter.kinds)} adapter, named as by {adapter.writer}"),
        ("rank", _counted(adapter.ranks()) or "whole factors"),
        ("alpha", _counted(adapter.alphas()) or "none stated, so the factor is 1"),
        ("size", f"{sum(each.nbytes for each in stored) / 1e6:.4g} MB in {sum(h.tensors for h in stored)} tensors"),
        ("dtypes", ", ".join(f"{each.dtype} {each.tensors}" for each in stored)),
        ("fits", ", ".join(f"model={name}: {n} of {total}" for name, n in fits.items())),
    ]
    if count < total:
        return Inspection([Part("adapter", rows)], [f"At most {count} of its {total} linears fit (model={best})."])
    overrides = {"model": best, "technique": "[lora]", "++technique.lora.path": given}
    return Inspection([Part("adapter", rows)], [], overrides)


def _linears(readers: Iterable[Reader]) -> Iterator[tuple[Reader, dict[str, tuple[int, int]]]]:
    """The linears of the transformer of each reader; of two with the same, the first."""
    seen: list[tuple[Any, Any]] = []
    for reader in readers:
        config = reader.config
        if (reader.source.kind, config) not in seen:
            seen.append((reader.source.kind, config))
            modules = reader.transformer(config).named_modules()
            yield reader, {path: module.weight.shape for path, module in modules if isinstance(module, nn.Linear)}


def _counted(counts: Mapping[Any, int]) -> str:
    """Values with how often they occur, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    more = f", {len(ordered) - _MORE} more" if len(ordered) > _MORE else ""
    return ", ".join(f"{value:g} ({count})" for value, count in ordered[:_MORE]) + more


def _listed(names: Collection[str]) -> str:
    """The first names, and how many there are."""
    text = ", ".join(inline(name) for name in list(names)[:_MORE])
    return f"{text}, ... ({len(names)})" if len(names) > _MORE else text
