"""The shipped configurations in tests, with Hydra 1.3 and with 1.4, which deprecates `version_base`."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
import pytest
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult

CONF = Path(__file__).parents[1] / "conf"


def configurations():
    """A context in which `hydra.compose` reads the shipped configurations."""
    settings = {"version_base": None} if hydra.__version__.startswith("1.3.") else {}
    return hydra.initialize_config_dir(str(CONF), **settings)


@contextmanager
def shipped_files_read_once() -> Iterator[None]:
    """A context in which Hydra parses each shipped file, and its own, once: nearly half the time of a composition.

    Each composition gets a copy. A file that changes in between is read again.
    """
    Plugins.instance()  # registers the sources
    registry = SourcesRegistry.instance()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.resolve("file"), "load_config", _once(registry.resolve("file").load_config))
        patch.setattr(registry.resolve("structured"), "load_config", _once(registry.resolve("structured").load_config))
        yield


def _once(load):
    known: dict[tuple, bytes] = {}

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        own = self.scheme() == "file"
        if own and CONF not in file.parents:
            return load(self, config_path)
        key = (self.provider, file, file.stat().st_mtime_ns if own and file.is_file() else None)
        if key not in known:
            known[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(known[key])

    return load_config
