"""Locates a checkpoint on disk or on the Hugging Face Hub, and computes the fingerprint of its weights."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from precision_lab.errors import InputError
from precision_lab.model import foreign
from precision_lab.record.origin import LABEL, SYNTHETIC, TRAINED, UNKNOWN

EMBEDDED = "package://"
_CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SAMPLE = 1 << 20


def located(source: str, revision: str | None, marker: str, needed: Sequence[str]) -> Path:
    """Returns the folder of the checkpoint that `source` names.

    source: a folder, package://NAME for an embedded checkpoint, or the id of a Hub repository, of which a snapshot is
    downloaded. revision: that of the Hub repository. marker: a file that every such checkpoint contains. needed:
    patterns of the files to download. Interrupted downloads are resumed; under HF_HUB_OFFLINE=1 only the local cache is
    used.

    Raises InputError if `source` is none of these, if a folder has no `marker`, or if the Hub cannot be reached.
    """
    folder = local(source)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, marker)):
            raise InputError(f"{source} is not a checkpoint: no {marker} in it{_instead(Path(folder))}")
        return Path(folder)
    if os.path.isfile(folder):
        foreign.refuse_file(f"model.path {source!r}", Path(folder))
    if not os.path.exists(folder) and foreign.names_weights(source):
        raise InputError(f"model.path {source!r}: no such file")
    if os.path.exists(folder) or not _HUB_ID.fullmatch(source):
        raise InputError(f"model.path {source!r} is neither a folder nor a Hub id like Qwen/Qwen-Image")
    return _download(source, revision, needed)


def local(source: str) -> str:
    """The path on this machine that `source` means: that of package://NAME in this package, with ~ as the home."""
    if source.startswith(EMBEDDED):
        return str(_CHECKPOINTS / source.removeprefix(EMBEDDED))
    return os.path.expanduser(source)  # os.path, because Path raises other exceptions for names that no file can have


def origin_of(config: Mapping[str, Any], file: Path) -> str:
    """The origin of the weights that a configuration states in `_weights`: trained, synthetic, or else unknown.

    Only this project writes that label. config: the content of `file`. Raises InputError for another label.
    """
    label = config.get(LABEL, UNKNOWN)
    if label not in (TRAINED, SYNTHETIC, UNKNOWN):
        raise InputError(f"{file}: _weights is {label!r:.60}, expected {TRAINED} or {SYNTHETIC}, or no such key")
    return str(label)


def is_published(source: str, publisher: str) -> bool:
    """Whether `source` is a repository of `publisher` on the Hub, a prefix of its id; a folder of that name is not."""
    return source.startswith(publisher) and not os.path.isdir(os.path.expanduser(source))


def named(source: str) -> str:
    """The name of a checkpoint that has only its path: the last part of a folder, the whole id of a repository."""
    if source.startswith(EMBEDDED):
        return source.removeprefix(EMBEDDED)
    folder = os.path.expanduser(source)
    return os.path.basename(os.path.abspath(folder)) if os.path.isdir(folder) else source


def _instead(folder: Path) -> str:
    """What a folder is that is no checkpoint, as the end of a sentence; empty if it is of no known kind."""
    config = folder / "config.json"
    if (folder.parent / "model_index.json").is_file():
        return f". It is a component of a checkpoint: give {folder.parent}"
    if config.is_file():
        return ". It has a config.json like a single model: give the folder of the whole pipeline"
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        kind = foreign.kind_of(file)
        if kind is not None:
            return f". {file.name} in it is {kind}, expected a folder in the published layout"
    return ""


def fingerprint(files: Mapping[str, Sequence[Path]], prefix: str = "") -> str:
    """SHA-256 over the names, sizes and contents of the weight files, as hexadecimal digits.

    A file over 64 MiB contributes only its first and last MiB. files: the weight files of each component; its name is
    prepended to theirs. prefix: any further text that identifies the weights, hashed first.
    """
    digest = hashlib.sha256(prefix.encode())
    for name, paths in files.items():
        for path in paths:
            size = path.stat().st_size
            digest.update(f"{name}/{path.name}:{size}\n".encode())
            with path.open("rb") as file:
                if size <= 64 * _SAMPLE:
                    digest.update(file.read())
                else:
                    digest.update(file.read(_SAMPLE))
                    file.seek(-_SAMPLE, 2)
                    digest.update(file.read())
    return digest.hexdigest()


def _download(repo: str, revision: str | None, needed: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(needed)))
    except GatedRepoError as error:
        raise InputError(f"model.path {repo!r}: its owner grants access on the Hub; ask there and log in") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise InputError(f"model.path {repo!r}: no such repository on the Hub, nor a folder of that name") from error
    except RevisionNotFoundError as error:
        raise InputError(f"model.path {repo!r}: no revision {revision!r} on the Hub") from error
    except Exception as error:  # transport errors have no common base class and change with huggingface_hub
        raise InputError(
            f"model.path {repo!r}: not in the local cache and cannot be fetched from the Hub ({type(error).__name__}). "
            "Give a folder, or run once with a network"
        ) from error
