"""The folders of the package's data: next to the code in a wheel, at the top of the repository in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The folder of Hydra configurations."""
    installed = _PACKAGE / "conf"
    return installed if installed.is_dir() else _PACKAGE.parent / "conf"


def options(group: str) -> list[str]:
    """Names of the options of a configuration group. Files whose name begins with an underscore are only bases."""
    return sorted(path.stem for path in (conf_dir() / group).glob("[!_]*.yaml"))


def checkpoints_dir() -> Path:
    """The folder of embedded checkpoints."""
    return _PACKAGE / "checkpoints"
