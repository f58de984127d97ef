"""The folders of the package's data: next to the code in a wheel, at the top of the repository in a checkout."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from precision_lab.errors import nearest

_PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The folder of the shipped Hydra configurations."""
    installed = _PACKAGE / "conf"
    return installed if installed.is_dir() else _PACKAGE.parent / "conf"


def option_files(group: str) -> dict[str, Path]:
    """The files of the options of a configuration group by name, those of `--config-dir` included.

    Files whose name begins with an underscore are only bases.
    """
    files = (path for folder in _folders() for path in (folder / group).glob("[!_]*.yaml"))
    found: dict[str, Path] = {}
    for path in files:
        found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def groups() -> set[str]:
    """Names of the groups of configurations."""
    return {path.name for folder in _folders() for path in folder.glob("*/")}


def options(group: str) -> list[str]:
    """Names of the options of a configuration group."""
    return list(option_files(group))


def known_settings() -> list[str]:
    """Names of settings down to the second level: those of the commands, and those that a model adds."""
    from omegaconf import OmegaConf

    names: set[str] = set()
    commands = [conf_dir() / f"{name}.yaml" for name in ("config", "gate", "prove", "sensitivity", "culprits")]
    for file in (*commands, *(path for folder in _folders() for path in (folder / "model").glob("*.yaml"))):
        try:
            content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        except Exception:  # somebody's broken file is no reason to suggest nothing
            continue
        for key, value in content.items() if isinstance(content, dict) else ():
            if key not in ("defaults", "hydra"):
                names.add(str(key))
                names |= {f"{key}.{below}" for below in value} if isinstance(value, dict) else set()
    return [*(name for name in names if not name.endswith("._target_")), "probe.range.sites", "probe.range.ports"]


def suggested(name: str, others: Iterable[str] = ()) -> str:
    """A sentence on the settings most like `name`: first those that have it as their last part.

    Where `name` is right elsewhere, the sentence says so.
    """
    known = [*others, *known_settings()]
    if name in known:
        return "Another model, experiment or command has it; --cfg job shows the settings of this one"
    if not name.startswith("scan."):  # a section of `sensitivity` alone, whose steps are no others' steps
        known = [setting for setting in known if not setting.startswith("scan.")]
    same = sorted({setting for setting in known if setting.rpartition(".")[2] == name})
    return f"Did you mean {', '.join(same[:3])}?" if same else nearest(name, known)


def checkpoints_dir() -> Path:
    """The folder of embedded checkpoints."""
    return _PACKAGE / "checkpoints"


def _folders() -> list[Path]:
    """The folders of configurations: that of `--config-dir` first, then the shipped one.

    Only a process that composes has read Hydra; the text of --help must not wait for it.
    """
    hydra = sys.modules.get("hydra.core.global_hydra")
    instance = hydra.GlobalHydra.instance() if hydra else None
    if instance is None or not instance.is_initialized():
        return [conf_dir()]
    paths = [item.path for item in instance.config_loader().get_search_path().get_path()]
    own = [Path(path.removeprefix("file://")) for path in paths if path and "://" not in path.removeprefix("file://")]
    return list(dict.fromkeys((*own, conf_dir())))
