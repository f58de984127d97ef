"""`models` without a task: a table of the options of `model`, with what each needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from precision_lab.cli.building import located
from precision_lab.cli.meanings import options
from precision_lab.cli.paths import option_files
from precision_lab.cli.terminal import print_table
from precision_lab.errors import InputError

COLUMNS = ("model", "weights", "download", "memory", "streamed", "licence", "what it is")
UNKNOWN = "-"
_STATED = re.compile(r"# (Download|Licence): (.+)")
_SUFFIX = "_synthetic"
_EMBEDDED, _ON_DEMAND = "package://", "synthetic://"


def show(console: Console) -> None:
    """Prints the table and how its figures were computed."""
    abouts = options("model")
    rows = [(f"model={name}", *_needs(name, file), abouts[name]) for name, file in option_files("model").items()]
    print_table(console, COLUMNS, rows, folding=("licence", "what it is"))
    console.print()
    console.print(
        "download: as published where it is stated, computed (*) from the shapes in bf16, or the size of the files. "
        "memory: weights in bf16, all loaded, counted from the shapes of the modules; streamed: with "
        "model.stream=true, all but the blocks, and two blocks. Activations come on top. -: unknown."
    )


def content_of(file: Path) -> Any:
    """The content of an option of `model`, with that of the option it extends."""
    content = OmegaConf.load(file)
    for parent in OmegaConf.select(content, "defaults", default=[]):
        base = file.with_name(f"{parent}.yaml")
        if isinstance(parent, str) and parent != "_self_" and base.is_file():
            content = OmegaConf.merge(OmegaConf.load(base), content)
    return content


def _needs(name: str, file: Path) -> tuple[str, str, str, str, str]:
    """Kind of weights, download, memory resident and streamed, licence."""
    lines = file.read_text("utf-8").splitlines()
    facts = {match[1]: match[2] for match in map(_STATED.fullmatch, lines) if match}
    licence, unknown = facts.get("Licence", UNKNOWN), ("yours", UNKNOWN, UNKNOWN, UNKNOWN)
    content = content_of(file)
    try:
        source: Any = located(OmegaConf.select(content, "model._target_"), f"model={name}")
        if not hasattr(source, "preset"):
            return (*unknown, licence)
        kind, download, needed = _sizes(name, source, OmegaConf.select(content, "model"))
    except InputError:  # somebody's broken option
        return (*unknown, licence)
    if needed is None:
        return (*unknown, licence)
    return kind, facts.get("Download", download), _bytes(needed.resident), _bytes(needed.streamed), licence


def _sizes(name: str, source: Any, settings: Any) -> tuple[str, str, Any]:
    from precision_lab.synthetic import PRESETS
    from precision_lab.synthetic.checkpoint import weight_bytes

    path, generated = settings.path, name.removesuffix(_SUFFIX)
    published = PRESETS[source.preset]
    if path is not None and path.startswith(_EMBEDDED):
        opened = source(path=path, base=settings.base)
        files = sum(each.stat().st_size for each in opened.folder().rglob("*.safetensors"))
        configs = stated(opened, _configs(published, source))
        return "trained by this project", f"none, has {_bytes(files)}", source.sizes(configs)
    if path is not None and path.startswith(_ON_DEMAND):
        generated = path.removeprefix(_ON_DEMAND)
    elif path is not None:
        return "published", f"{_bytes(weight_bytes(published))} *", source.sizes(_configs(published, source))
    shape = PRESETS.get(generated)
    if shape is None:
        return "yours", UNKNOWN, None
    return "generated", f"none, writes {_bytes(weight_bytes(shape))} *", source.sizes(_configs(shape, source))


def _configs(shape: Any, source: Any) -> dict[str, Any]:
    return {part: getattr(shape, part) for part in source.kind.modules}


def stated(source: Any, like: dict[str, Any]) -> dict[str, Any]:
    """The configurations of a source's checkpoint, of the classes of `like`.

    Raises InputError for configurations that cannot be read.
    """
    return {part: source.opened.config(part, type(config)) for part, config in like.items()}


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
