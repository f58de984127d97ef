"""The folder of a checkpoint: on disk or fetched from the Hugging Face Hub, and the fingerprint of its weights."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from precision_lab.errors import InputError
from precision_lab.model import weights

EMBEDDED = "package://"
_CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SAMPLE = 1 << 20


def located(source: str, revision: str | None, marker: str, needed: Sequence[str]) -> Path:
    """The folder `source`, an embedded checkpoint for package://NAME, or a snapshot of the Hub repository of that id.

    marker: a file that every such checkpoint has. needed: patterns of the files to download. Interrupted downloads are
    resumed; under HF_HUB_OFFLINE=1 only the local cache is used. Raises InputError for anything that is neither, and
    for a Hub that cannot be reached.
    """
    if source.startswith(EMBEDDED):
        source = str(_CHECKPOINTS / source.removeprefix(EMBEDDED))
    # os.path: a Path raises exceptions of its own for names that no file can have
    folder = os.path.expanduser(source)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, marker)):
            raise InputError(f"{source} is not a checkpoint: no {marker} in it")
        return Path(folder)
    if os.path.exists(folder) or not _HUB_ID.fullmatch(source):
        raise InputError(f"model.path {source!r} is neither a folder nor a Hub id like Qwen/Qwen-Image")
    return _download(source, revision, needed)


def fingerprint(folders: Mapping[str, Path], prefix: str = "") -> str:
    """SHA-256 over names, sizes and contents of weight files; of files over 64 MiB the first and the last MiB.

    folders: by the name that precedes the name of a file. prefix: anything else that decides the weights.
    """
    digest = hashlib.sha256(prefix.encode())
    for name, folder in folders.items():
        for path in weights.shards(folder):
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
    except Exception as error:  # those of the transport share no base class and change with the Hub's library
        raise InputError(
            f"model.path {repo!r}: not in the local cache and cannot be fetched from the Hub ({type(error).__name__}). "
            "Give a folder, or run once with a network"
        ) from error
