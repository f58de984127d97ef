"""What is kept of an exception that a variant raised: one line for tables and terminal, and the traceback in a file."""

from __future__ import annotations

import traceback
from errno import EDQUOT, EIO, ENOSPC, EROFS
from pathlib import Path
from typing import NamedTuple

from precision_lab.errors import described
from precision_lab.instrument.blame import place_of
from precision_lab.record.files import write_text
from precision_lab.record.layout import Layout

FOLDER = "errors"
_OF_DISKS = (ENOSPC, EDQUOT, EROFS, EIO)


class Failure(NamedTuple):
    """message: the exception, its file and line, and the observed module in whose call it was raised."""

    message: str
    trace: str

    @classmethod
    def of(cls, error: BaseException, layout: Layout) -> Failure:
        """Of an exception that is being handled."""
        message, place = described(error), place_of(error)
        if place is not None:
            message += f" (in {layout.address(place.component, place.site)})"
        return cls(message, "".join(traceback.format_exception(error)))

    def write(self, out: Path, name: str) -> Path:
        """Writes the traceback into the run folder; returns its path."""
        path = out / FOLDER / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        write_text(path, self.trace.encode("utf-8", "backslashreplace").decode("utf-8"))
        return path


def is_of_the_disk(error: BaseException, out: Path) -> bool:
    """Whether an exception says that the run folder cannot be written; it is then no failure of a variant."""
    if not isinstance(error, OSError):
        return False
    return error.errno in _OF_DISKS or str(error.filename or "").startswith(str(out))
