"""What Hydra and OmegaConf cannot read, in one or two lines that name the override, the key or the file."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from precision_lab.cli.paths import conf_dir, groups, options, suggested
from precision_lab.errors import InputError, first_line, nearest, shown

_MOST_ENTRIES = 100_000
_LAUNCHERS = ("sweep-joblib", "sweep-submitit", "sweep-ray")
"""Extras of the package that install launchers."""
# names of local variables of Hydra that hold the path of the configuration that it is reading
_PATHS = ("normalized_config_path", "config_path", "new_base", "path")


def check_files(folder: Path) -> None:
    """Refuses the yaml files of `--config-dir` whose aliases would fill the memory: OmegaConf copies what they name."""
    for pattern in ("*.yaml", "*/*.yaml", "*/*/*.yaml"):
        for path in folder.glob(pattern):
            try:
                content = path.read_bytes()
            except OSError:  # Hydra says so if it needs the file
                continue
            check_aliases(path, content)


def check_aliases(path: Path, content: bytes) -> None:
    """Refuses yaml whose aliases would fill the memory. What is no yaml is left to its reader."""
    try:
        size = _expanded(content) if b"&" in content and b"*" in content else 0
    except (YAMLError, UnicodeError):
        return
    if size > _MOST_ENTRIES:
        raise InputError(f"{path}: its aliases make more than {_MOST_ENTRIES} entries")


def _expanded(content: bytes) -> int:
    """The number of entries of a yaml file, each alias counted as what it names."""
    sizes: dict[str, int] = {}
    open_ones: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_ones.append((event.anchor, 1))
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_ones.pop()
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        outer, before = open_ones.pop()
        open_ones.append((outer, before + size))
    return open_ones[0][1]


def parsed(overrides: Sequence[str]) -> list[Override]:
    """The overrides in Hydra's grammar. Raises InputError that names the one which is not."""
    parser = OverridesParser.create()
    found = []
    for override in overrides:
        if "\0" in override:
            raise InputError(f"{shown(override)} holds a NUL")
        try:
            one = parser.parse_overrides([override])
        except (HydraException, ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else _reason(error)
            hint = "" if "=" in override else ". Expected KEY=VALUE; a command comes before the overrides"
            raise InputError(f"Cannot read {shown(override)}: {reason}{hint}") from error
        for each in one:
            holder, _, setting = str(each.key_or_group).partition(".")
            if str(each.key_or_group) in groups() and not _chooses(each):
                raise InputError(
                    f"{override} chooses options of the group {each.key_or_group}, expected a name or a list of names"
                )
            known = HydraConf.__dataclass_fields__
            if holder == "hydra" and setting and setting.split(".")[0] not in known:
                raise InputError(f"Unknown setting 'hydra.{setting}'. {nearest(setting, known)}")
        found += one
    return found


def check_experiment(root: str, command: Sequence[str], overrides: Sequence[Override]) -> None:
    """Raises InputError if a command that runs none is given an experiment, whose settings it would be given too."""
    for override in overrides:
        if str(override.key_or_group) != "exp" or not (conf_dir() / f"{root}.yaml").is_file():
            continue
        from precision_lab.cli import meanings  # few mistakes need it

        if not any(group.name == "exp" for group in meanings.root(root).groups):
            raise InputError(f"{command[0]} has no use for {override.input_line}: it runs no experiment")


def _chooses(override: Override) -> bool:
    """Whether the value of an override can choose options of a group; a sweep's values are looked at one by one."""
    if override.is_sweep_override() or override.is_delete():
        return True
    value = override.value()
    names = value if isinstance(value, list) else [value]
    return all(isinstance(name, str | QuotedString) for name in names)


def _reason(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, OverrideParseException) and error.__cause__ else error
    return first_line(cause).rstrip(".")


def composed_with(group: str, names: Sequence[str]) -> DictConfig:
    """The configuration of the present command with these options of a group instead of its own.

    Raises InputError as a command line does.
    """
    given = HydraConfig.get()
    own = [override for override in given.overrides.task if not override.startswith(f"{group}=")]
    return composed(str(given.job.config_name), [*own, f"{group}=[{','.join(names)}]"])


def composed(root: str, overrides: Sequence[str]) -> DictConfig:
    """A root configuration with overrides, from the folders that the present command reads.

    Raises InputError as a command line does.
    """
    parsed(overrides)
    try:
        config = GlobalHydra.instance().config_loader().load_configuration(root, list(overrides), RunMode.RUN)
    except Exception as error:
        raise InputError(described_failure(error)) from error
    with read_write(config), open_dict(config):
        del config["hydra"]
    return config


def described_failure(error: Exception) -> str:
    """The message for an exception that Hydra raised while it composed a configuration."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _refused(error)
    where = f"{_file(error)}: " if _file(error) else ""
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        at = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        return f"{where}not YAML that can be read{at}: {error.problem or first_line(error)}"
    if isinstance(error, UnicodeError):
        return f"{where}not UTF-8 text: {first_line(error)}"
    if isinstance(error, OSError):
        return f"{where}cannot be used: {error.strerror or first_line(error)}"
    if isinstance(error, RecursionError):
        return f"{where}the configuration refers to itself, or is nested too deeply"
    return f"{where}the configuration cannot be composed: {type(error).__name__}: {first_line(error)}"


def _missing(error: MissingConfigException) -> str:
    """The message for an option of a group, or a root configuration, that does not exist."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    known = [name for name in {*(error.options or ()), *options(group)} if not name.startswith("_")]
    kind = {"exp": "experiment", "": "configuration"}.get(group, group)
    if group == "hydra/launcher" and (extra := f"sweep-{name.partition('_')[0]}") in _LAUNCHERS:
        return f"The launcher {name} is not installed. pip install 'precision-lab[{extra}]' installs it"
    if group == "candidate":
        from precision_lab.cli.candidates import refused  # imports techniques, which few mistakes need

        return refused(name) or f"Unknown {kind} {shown(name)}. {nearest(name, known)}"
    return f"Unknown {kind} {shown(name)}. {nearest(name, known)}"


def _without_default(group: str, value: str) -> str:
    """The message for a group of which a command composes no option until one is added."""
    names, known = value.strip("[]'\"").split(","), options(group)
    right = "+claim@claims" if group == "claim" else f"+{group}"
    kind = "experiment" if group == "exp" else group
    for name in names:
        if known and name not in known:
            return f"Unknown {kind} {shown(name)}. {nearest(name, known)} Expected {right}=NAME"
    return f"{group}={value} changes what is composed already, and nothing is. Did you mean {right}={value}?"


def _refused(error: Exception) -> str:
    """The first lines of a message of Hydra or OmegaConf, with the key and the file that it is about."""
    text = str(error).strip()
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"[Kk]ey '([\w.]+)' is not in struct", text)
    full = re.search(r"full_key: ([\w.\[\]]+)", text)
    if key and ("is not in struct" in text or "To append to your config" in text):
        name = full[1] if full else key[1]
        if name.startswith("hydra."):
            return f"Unknown setting {name!r}. --cfg hydra shows those of Hydra and of the launcher"
        return f"Unknown setting {name!r}. {suggested(name)}"
    if appended := re.search(r"No match in the defaults list.*?use \+([\w/]+)=(\S*)", text, re.DOTALL):
        return _without_default(appended[1], appended[2])
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    named = f"{full[1]}: " if full and full[1] not in lines[0] else ""
    file = _file(error)
    where = f"{file}: " if file and file not in lines[0] and not key and not full else ""
    return "\n".join([f"{where}{named}{lines[0]}", *lines[1:2]])


def _file(error: BaseException) -> str:
    """The path of the configuration that Hydra was reading, below the folders of configurations; empty if unknown."""
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__", "")).startswith(("hydra.", "omegaconf.")):
            for name in _PATHS:
                value = frame.f_locals.get(name)
                if isinstance(value, str) and value and "://" not in value:
                    found = value
                    break
    return str(Path(found)) if found else ""
