"""How a command ends: its exit code, and what it raises in one or two lines on stderr."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from errno import EACCES, EDQUOT, ENOSPC, EROFS

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from precision_lab.cli.composing import described_failure
from precision_lab.errors import InputError, VariantError, described, visible


@dataclass(frozen=True)
class Ending:
    """An exit code, and the message of the exception behind it; empty if nothing was raised."""

    code: int
    message: str = ""

    def tell(self, where: str = "") -> None:
        """Prints the message, if there is one, on stderr. where: what it is about, put before it."""
        if self.message:
            print(visible(f"{where}: {self.message}" if where else self.message), file=sys.stderr)  # noqa: T201


def guarded(action: Callable[[], int]) -> int:
    """The exit code of `action`. What it raises is reported in one or two lines on stderr.

    A KeyboardInterrupt that a command raises with a message says what is left of its work.
    """
    try:
        ending = ending_of(action)
    except KeyboardInterrupt as error:
        ending = _failed(str(error) or "Interrupted. What was finished is kept; resume=true continues.", 130)
    ending.tell()
    return ending.code


def ending_of(action: Callable[[], int]) -> Ending:
    """Runs `action`; raises nothing but KeyboardInterrupt, and prints nothing but tracebacks for debugging."""
    try:
        return Ending(action())
    except (HydraException, OmegaConfBaseException) as error:
        return _failed(described_failure(error), 2)
    except InputError as error:
        return _failed(str(error), 2)
    except VariantError as error:
        return _failed(str(error), 1)
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            return _failed(
                f"No space left on the disk ({error.filename or 'while writing'}). resume=true continues.", 2
            )
        if error.errno in (EACCES, EROFS):
            return _failed(f"Cannot write {error.filename}: {error.strerror}", 2)
        return _fault(error)
    except (Exception, SystemExit) as error:
        return _fault(error)


def _fault(error: BaseException) -> Ending:
    """Saves the traceback of an exception that nothing should raise; exit code 3."""
    handle, name = tempfile.mkstemp(prefix="precision_lab-", suffix=".txt")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(traceback.format_exception(error)))
    return _failed(f"A fault of precision_lab: {described(error)}. Please report it with {name}", 3)


def _failed(message: str, code: int) -> Ending:
    if os.environ.get("PRECISION_LAB_DEBUG") == "1":
        traceback.print_exc()
    return Ending(code, message)
