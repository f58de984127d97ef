"""The text of --help: of the program, and of each command. It is read from the comments in the configuration files."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from precision_lab import __version__
from precision_lab.cli import meanings
from precision_lab.cli.meanings import Group, Root, Setting
from precision_lab.cli.paths import option_files

_WIDTH = 110
_LEFT = 30
"""The column in which meanings begin."""

_OPTIONS = {
    "-m, --multirun": "a sweep: one job for each combination of values, as in dtype=bfloat16,float16",
    "--config-dir DIR": "your own options of the groups, in DIR/technique, DIR/probe, DIR/exp, ...",
    "--cfg job": "shows the composed configuration and does nothing else",
    "--version": "the version of this program",
}
_CODES = {
    "0": "done",
    "1": "something that was to hold does not",
    "2": "a mistake in the input, in one or two lines; nothing is left half-written",
    "3": "a fault of this program; its traceback is in the file that the message names",
    "130": "interrupted; what was finished is kept, and resume=true out=DIR continues a run",
}
_NOTES = (
    "An override is KEY=VALUE in Hydra's grammar; quote what the shell would read: 'runs=[A,B]'. A key that a group "
    "adds is set below it, as probe.range.sites=[...]. PRECISION_LAB_DEBUG=1 shows tracebacks."
)


def program(commands: Mapping[str, str]) -> str:
    """The help page of the program. commands: the name of the root configuration of each, or what it is."""
    lines = [
        f"precision_lab {__version__}: numerical precision of models on MLX, first of all Qwen-Image",
        "",
        "Usage:",
        "  python -m precision_lab [COMMAND] [KEY=VALUE ...]     precision-lab is the same; `run` is the default",
        "  python -m precision_lab COMMAND --help                what it does, its settings and their options",
        "",
        "Commands:",
    ]
    for name, about in commands.items():
        lines += _entry(name, _sentence(about), left=15)
    lines += ["", "Examples:"]
    for command, meaning in meanings.root("config").examples[:3]:
        lines += _entry(command, meaning, left=_WIDTH // 2)
    for title, group in (
        ("Experiments", "exp"),
        ("Techniques", "technique"),
        ("Candidates", "candidate"),
        ("Models", "model"),
        ("Probes", "probe"),
        ("Samplers", "sampler"),
    ):
        lines += ["", f"{title}:", *_wrapped(", ".join(option_files(group)), "  ")]
    lines += ["", "Options:", *(line for pair in _OPTIONS.items() for line in _entry(*pair, left=20))]
    lines += ["", *_wrapped(_NOTES), "", "Exit codes:", *_codes({})]
    return "\n".join(lines)


def command(name: str, root_name: str, words: Sequence[str] = ()) -> str:
    """The help page of a command. words: the overrides beside --help, of which model= chooses the model to describe."""
    root = meanings.root(root_name)
    model = next((word.removeprefix("model=") for word in words if word.startswith("model=")), "") or _model(root)
    lines = [
        f"precision_lab {name}",
        "",
        *_wrapped(root.about),
        "",
        "Usage:",
        f"  python -m precision_lab {name} [KEY=VALUE ...]",
        "",
        "Examples:",
    ]
    for example, meaning in root.examples:
        lines += [f"  {example}", *_wrapped(meaning, "      ")]
    lines += [""]
    for section in ("Reads", "Writes"):
        lines += _wrapped(f"{section}: {root.sections.get(section, 'nothing.')}", "", "  ")
    lines += ["", "Settings, with their defaults:", *_settings(root.own.values())]
    if root.inherited:
        others = f"`{'run' if root.parents == ['config'] else root.parents[0]}`"
        lines += ["", f"Settings that it shares with {others}:", *_settings(root.inherited.values())]
    own = meanings.of_model(model) if any(group.name == "model" for group in root.groups) else {}
    if not any(key.startswith("sampler") for key in root.settings):
        own = {key: setting for key, setting in own.items() if key.startswith("model.")}
    if own:
        lines += ["", f"Settings of the model (model={model}):", *_settings(own.values())]
    lines += [line for group in _distinct(root.groups) for line in _options_of(group)]
    lines += ["", "Options:", *(line for pair in _OPTIONS.items() for line in _entry(*pair, left=20))]
    lines += ["", *_wrapped(_NOTES), "", "Exit codes:", *_codes(root.sections)]
    return "\n".join(lines)


def summary(root_name: str) -> str:
    """What a command does, in a sentence."""
    return _sentence(meanings.root(root_name).about)


def _sentence(text: str) -> str:
    return re.split(r"[.;:] ", text, maxsplit=1)[0].rstrip(".")


def _model(root: Root) -> str:
    return next((group.default for group in root.groups if group.name == "model"), "")


def _settings(settings: Iterable[Setting]) -> Iterator[str]:
    for setting in settings:
        if setting.meaning:
            yield from _entry(f"{setting.key}={setting.default}" if setting.default else setting.key, setting.meaning)


def _distinct(groups: Sequence[Group]) -> Iterator[Group]:
    """The groups without the places that take the options of another one."""
    named = set()
    for group in groups:
        if group.name not in named:
            named.add(group.name)
            yield group


def _options_of(group: Group) -> Iterator[str]:
    value = "[NAME,...]" if group.takes_several else "NAME"
    default = group.default if group.default != "none" else "no"
    yield ""
    yield f"Options of {group.override}{value} (default {default}):"
    for name, meaning in meanings.options(group.name).items():
        yield from _entry(name, meaning)


def _codes(sections: Mapping[str, str]) -> Iterator[str]:
    for code, meaning in _CODES.items():
        own = sections.get(f"Exit code {code}", meaning)
        yield from _entry(code, own.rstrip("."), left=8)


def _entry(name: str, meaning: str, left: int = _LEFT) -> Iterator[str]:
    """A name with its meaning beside it, or below a long name."""
    indent = " " * left
    lines = _wrapped(meaning, indent)
    if len(name) + 4 > left:
        yield f"  {name}"
        yield from lines
    else:
        yield f"  {name}".ljust(left) + (lines[0][left:] if lines else "")
        yield from lines[1:]


def _wrapped(text: str, indent: str = "", hanging: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent if hanging is None else hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
