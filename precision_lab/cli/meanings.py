"""What the comments of the configuration files say: of a command, of each setting, of each option of a group.

The files are read line by line, without a parser of yaml, because --help and completion must not wait for one. The form
of a shipped file (a test holds it): comments directly above a key are its meaning; the comments at the head of a root
configuration describe its command, with sections such as `Examples:`; the first line of an option describes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from precision_lab.cli.paths import conf_dir, option_files

_KEY = re.compile(r"( *)([\w.@/-]+):(?: +(.*))?$")
_SECTION = re.compile(r"(Examples|Reads|Writes|Exit code 1): *(.*)$")
_DEFAULT = re.compile(r"(override +)?/?([\w/]+)((?:@[\w.]+)?): *(.*)$")
_WORDS = re.compile(r"[\w-]+(?:\|[\w-]+)+")


@dataclass(frozen=True)
class Setting:
    """A setting with the text of its default, and what it means; empty where the file says nothing."""

    key: str
    default: str
    meaning: str

    @property
    def values(self) -> list[str]:
        """The values at the head of its meaning, as in a|b|c; true and false for a switch."""
        if self.default in ("true", "false"):
            return ["true", "false"]
        listed = _WORDS.match(self.meaning)
        return listed[0].split("|") if listed else []

    @property
    def takes_several(self) -> bool:
        """Whether the value is a list: its default is, or the meaning says so."""
        return self.default.startswith("[") or self.key == "only" or "one or several" in self.meaning


@dataclass(frozen=True)
class Group:
    """A group of configurations that a command takes. override: how options are chosen, such as `claim@claims=`."""

    name: str
    override: str
    default: str

    @property
    def takes_several(self) -> bool:
        return self.default.startswith("[")


@dataclass(frozen=True)
class Root:
    """A root configuration. about: its first paragraph. examples: command lines with their meanings.

    own, inherited: its settings, and those that it shares with `parents`, by key.
    """

    about: str
    examples: Sequence[tuple[str, str]]
    sections: Mapping[str, str]
    own: Mapping[str, Setting]
    inherited: Mapping[str, Setting]
    parents: Sequence[str]
    groups: Sequence[Group]

    @property
    def settings(self) -> Mapping[str, Setting]:
        return {**self.inherited, **self.own}


@dataclass
class _File:
    """The lines of a file as they were read."""

    head: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    settings: dict[str, Setting] = field(default_factory=dict)


def root(name: str) -> Root:
    """The root configuration with this name."""
    file = _read(conf_dir() / f"{name}.yaml")
    parents = [entry for entry in file.defaults if (conf_dir() / f"{entry}.yaml").is_file()]
    inherited: dict[str, Setting] = {}
    groups: dict[str, Group] = {}
    for parent in map(root, parents):
        inherited |= parent.settings
        groups |= {group.override: group for group in parent.groups}
    for entry in file.defaults:
        found = _DEFAULT.match(entry)
        if found and not found[2].startswith("hydra") and "@variants." not in entry and "@wide" not in entry:
            override = f"{'/' if entry.startswith('/') else ''}{found[2]}{found[3]}="
            groups[override] = Group(found[2], override, found[4])
    if name == "config":
        groups |= {f"+{each}=": Group(each, f"+{each}=", "none") for each in ("exp", "sampler")}
        groups["+claim@claims="] = Group("claim", "+claim@claims=", "[]")
    own = {}
    for key, setting in file.settings.items():
        above = inherited.pop(key, None)
        own[key] = setting if setting.meaning or above is None else Setting(key, setting.default, above.meaning)
    about, examples, sections = _described(file.head)
    return Root(about, examples, sections, own, inherited, parents, list(groups.values()))


@cache
def of_model(name: str) -> Mapping[str, Setting]:
    """The settings that a model adds or fills: those of model, sampler and image, its bases included."""
    path = option_files("model").get(name)
    return {} if path is None else _of_model(path)


def _of_model(path: Path) -> dict[str, Setting]:
    file = _read(path)
    found: dict[str, Setting] = {}
    for entry in file.defaults:
        base = path.parent / f"{entry}.yaml"
        if base.is_file():
            found |= _of_model(base)
    for key, setting in file.settings.items():
        if key.startswith(("model.", "sampler.", "image.")) and not key.endswith("_target_"):
            found[key] = Setting(key, setting.default, setting.meaning or (found[key].meaning if key in found else ""))
    return found


def options(group: str) -> dict[str, str]:
    """The options of a group with what the first lines of their files say; empty for a file that says nothing."""
    return {name: _first_sentence(path) for name, path in option_files(group).items()}


def variants(experiment: str) -> list[str]:
    """Names of the variants that an experiment states, with those of every run."""
    path = option_files("exp").get(experiment)
    own = _read(path).settings if path is not None else {}
    names = [key.split(".")[1] for key in own if key.startswith("variants.")]
    return list(dict.fromkeys(["baseline", *names]))


def commented(path: Path) -> Mapping[str, Setting]:
    """The settings of one file, without those it inherits."""
    return _read(path).settings


def _first_sentence(path: Path) -> str:
    lines = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            text = line.strip().removeprefix("#").strip()
            if not line.startswith("#"):
                break
            if text and not text.startswith("@package"):
                lines.append(text)
    return re.split(r"(?<=[^.\d])\. ", " ".join(lines))[0].rstrip(".")


def _described(head: Sequence[str]) -> tuple[str, list[tuple[str, str]], dict[str, str]]:
    about: list[str] = []
    examples: list[tuple[str, str]] = []
    sections: dict[str, list[str]] = {}
    into = about
    for line in head:
        text = line.strip()
        start = _SECTION.match(text)
        if start and start[1] == "Examples":
            into = []
        elif start:
            into = sections.setdefault(start[1], [start[2]])
        elif line.startswith("   ") and into is not about:
            command, _, meaning = text.partition("  ")
            examples.append((command, meaning.strip()))
        elif text:
            into.append(text)
    return " ".join(about), examples, {name: " ".join(lines) for name, lines in sections.items()}


@cache
def _read(path: Path) -> _File:
    found = _File()
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    in_head = True
    for line in lines:
        if in_head and line.startswith("#"):
            if "@package" not in line:
                found.head.append(line.removeprefix("#"))
            continue
        in_head = False
    for key, default, comment in _entries(lines):
        if key == "defaults":
            found.defaults += [part for part in default.strip("[]").split(", ") if part] if default else []
        elif key.startswith("defaults."):
            found.defaults.append(key.removeprefix("defaults."))
        elif key.partition(".")[0] != "hydra":
            found.settings[key] = Setting(key, default, comment)
    return found


def _entries(lines: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Each key with its dotted name, the text of its value and the comment above it; items of lists are left out.

    The items of the list `defaults` come as entries below it.
    """
    above: list[tuple[int, str]] = []  # the keys that hold the line, with their indentation
    comment: list[str] = []
    for line in lines:
        text = line.strip()
        if text.startswith("#"):
            comment.append(text.removeprefix("#").strip())
            continue
        key = _KEY.match(line)
        if text.startswith("- ") and above and above[0][1] == "defaults":
            yield f"defaults.{text.removeprefix('- ')}", "", ""
        elif key:
            indent = len(key[1])
            while above and above[-1][0] >= indent:
                above.pop()
            above.append((indent, key[2]))
            yield ".".join(name for _, name in above), key[3] or "", " ".join(comment)
        comment = []
