"""The verdict of a gate on the run of a folder, as gate.json states it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from precision_lab.errors import InputError
from precision_lab.record.files import RESTORE, advising, read_json

FILE = "gate.json"


@dataclass(frozen=True)
class GateVerdict:
    """passed: whether nothing deviates. deviations: how many metrics of addresses are outside of their limits."""

    passed: bool
    deviations: int

    @property
    def word(self) -> str:
        return "passed" if self.passed else "failed"

    @classmethod
    def read(cls, run: Path) -> GateVerdict | None:
        """None for a run that no gate has judged. Raises InputError for a file that cannot be read."""
        path = run / FILE
        if not path.exists():
            return None
        with advising(RESTORE):
            content = read_json(path)
        passed, violations = (content.get("passed"), content.get("violations")) if isinstance(content, dict) else (0, 0)
        if not isinstance(passed, bool) or not isinstance(violations, list):
            raise InputError(f"{path} is not the verdict of a gate. {RESTORE}")
        return cls(passed, len(violations))
