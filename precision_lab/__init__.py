"""A laboratory for numerical precision in MLX models, Qwen-Image first.

The public names below are listed with their meaning in `experiments/guide/reference.md`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precision_lab.errors import InputError as InputError
    from precision_lab.instrument.scope import scope as scope
    from precision_lab.instrument.sites import Site as Site
    from precision_lab.instrument.sites import Wrapper as Wrapper
    from precision_lab.lab.capture import capture as capture
    from precision_lab.lab.subject import Case as Case
    from precision_lab.lab.subject import Source as Source
    from precision_lab.lab.subject import Step as Step
    from precision_lab.lab.subject import Subject as Subject
    from precision_lab.probes.base import Probe as Probe
    from precision_lab.record.columns import Column as Column
    from precision_lab.record.layout import Layout as Layout
    from precision_lab.record.layout import Result as Result
    from precision_lab.record.layout import Stream as Stream
    from precision_lab.record.manifest import Checkpoint as Checkpoint
    from precision_lab.record.run import Run as Run
    from precision_lab.report.loaded import LoadedRun as LoadedRun
    from precision_lab.report.loaded import load_run as load_run
    from precision_lab.settings import checked as checked
    from precision_lab.techniques.base import ByPlace as ByPlace
    from precision_lab.techniques.base import Technique as Technique

__version__ = "0.1.0"

_PUBLIC = {
    "ByPlace": "techniques.base",
    "Case": "lab.subject",
    "Checkpoint": "record.manifest",
    "Column": "record.columns",
    "InputError": "errors",
    "Layout": "record.layout",
    "LoadedRun": "report.loaded",
    "Probe": "probes.base",
    "Result": "record.layout",
    "Run": "record.run",
    "Site": "instrument.sites",
    "Source": "lab.subject",
    "Step": "lab.subject",
    "Stream": "record.layout",
    "Subject": "lab.subject",
    "Technique": "techniques.base",
    "Wrapper": "instrument.sites",
    "capture": "lab.capture",
    "checked": "settings",
    "load_run": "report.loaded",
    "scope": "instrument.scope",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: the command line loads a BLAS before anything loads MLX."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"precision_lab.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
