"""`recipe`: prints a recipe in the words of another program, or reads one of theirs as a technique."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import yaml
from omegaconf import DictConfig

from precision_lab.cli import schema
from precision_lab.cli.building import build
from precision_lab.cli.config import build_source
from precision_lab.cli.literal import literal, literally
from precision_lab.cli.recipe_file import read_techniques
from precision_lab.cli.unused import OF_CASES, check_used
from precision_lab.errors import InputError, expected, visible
from precision_lab.instrument.sites import Components
from precision_lab.lab.recipe import nodes, stated, target_of
from precision_lab.lab.subject import Source, components_of, naming
from precision_lab.recipes.dialect import Dialect, Written
from precision_lab.recipes.dialects import DIALECTS
from precision_lab.recipes.documents import Document
from precision_lab.recipes.naming import Naming
from precision_lab.recipes.recipe import Loss, Recipe, Target
from precision_lab.record.folders import user_path
from precision_lab.techniques.base import Technique

USED = ("model", "technique", "sites", "to", "from", "file", "name")


def task(config: DictConfig, command: Sequence[str]) -> int:
    """Prints the recipe on standard output, and on standard error what it does not say, one line each."""
    config = literal(config)
    settings = schema.read(schema.Recipe, config)
    check_used(command, USED, OF_CASES)
    _check(settings)
    reader = _dialect("from", settings.from_) if settings.from_ else None
    writer = _dialect("to", settings.to) if settings.to else None
    source = build_source(config.model)
    components = components_of(source.load(mx.float32), source.layout)
    losses: list[Loss] = []
    if reader is not None:
        target = _target(source, components, settings.from_ or "", reader)
        recipe, losses = reader.read(Document.read(user_path(settings.file or "")), target)
        said = f"{reader.title}, {settings.file}"
    else:
        techniques = _techniques(config, settings)
        recipe, found = stated(components, techniques)
        losses, said = found.all(), ", ".join(techniques)
        target = _target(source, components, "mlx_lm", DIALECTS["mlx_lm"])
    if writer is None:
        print(_yaml(recipe, target, settings, said), end="")  # noqa: T201
    else:
        target = _target(source, components, settings.to or "", writer)
        written = _written(writer, recipe, target, losses)
        losses += written.losses
        print(written.text, end="")  # noqa: T201
    for loss in losses:
        print(visible(loss.line(target)), file=sys.stderr)  # noqa: T201
    return 0


def _check(settings: schema.Recipe) -> None:
    """Raises InputError unless the settings say what to print and in which words."""
    if settings.from_:
        if not settings.file or settings.technique:
            raise InputError(f"from={settings.from_} reads file=FILE, and no technique=")
        if settings.name is not None and not settings.name.isidentifier():
            raise InputError(
                f"name is {settings.name!r:.80}, expected letters, digits and underscores, as in my_recipe"
            )
        return
    if not settings.to:
        raise InputError(f"recipe needs to=DIALECT or from=DIALECT, one of {', '.join(DIALECTS)}")
    if bool(settings.technique) == bool(settings.file):
        raise InputError("recipe needs either technique=[NAME] or file=RECIPE.yaml")


def _dialect(key: str, name: str) -> Dialect:
    if name not in DIALECTS:
        raise InputError(f"{key}={name:.80}: unknown dialect, {expected(DIALECTS, name)}")
    return DIALECTS[name]


def _target(source: Source, components: Components, name: str, dialect: Dialect) -> Target:
    """The default component of the model, with the names that the dialect's program has for it."""
    model = source.checkpoint.name
    known = naming(source, name)
    if known is None and dialect.needs_naming:
        raise InputError(
            f"model {model} does not say how {dialect.title} names its modules; to=mlx_lm needs none but its own"
        )
    target = target_of(components, model, known or Naming())
    if not target.channels:
        raise InputError(f"model {model} has no linears in {components.layout.default}, so there is no recipe for it")
    return target


def _techniques(config: DictConfig, settings: schema.Recipe) -> Mapping[str, Technique]:
    if settings.file:
        return read_techniques(user_path(settings.file), config.sites)
    return {str(name): build(node, Technique, f"technique.{name}") for name, node in config.technique.items()}


def _written(dialect: Dialect, recipe: Recipe, target: Target, losses: Sequence[Loss]) -> Written:
    if not recipe:
        reason = losses[0].reason if losses else "it keeps every linear as stored"
        raise InputError(f"nothing of the recipe can be expressed for {dialect.title}: {reason}")
    return dialect.write(recipe, target)


def _yaml(recipe: Recipe, target: Target, settings: schema.Recipe, said: str) -> str:
    """The technique as a file of conf/technique."""
    name = settings.name or f"from_{settings.from_}"
    content: Any = literally(nodes(recipe, target, name))
    head = f"# {visible(said)}; {len(recipe)} of {len(target.channels)} linears of {target.model}\n".replace("\r", " ")
    return head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
