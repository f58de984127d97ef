"""About how long a command takes is said once, from the first steps that tell it."""

from __future__ import annotations

import pytest

from precision_lab.lab import outline
from precision_lab.lab.outline import Estimating


class Noted:
    """Progress that keeps what it receives."""

    def __init__(self):
        self.totals, self.done, self.notes = [], 0.0, []

    def start(self, total):
        self.totals.append(total)

    def advance(self, amount, label):
        self.done += amount

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a test says so: `clock[0]` in seconds."""
    now = [0.0]
    monkeypatch.setattr(outline.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("amount", "seconds", "workers", "total"), [(1, 2.0, 1, "80 s"), (0.5, 3.0, 2, "2 min")])
def test_the_estimate_follows_from_the_second_step_and_is_said_once(clock, amount, seconds, workers, total):
    noted = Noted()
    progress = Estimating(noted, workers, "pass", "this scan")
    progress.start(0)  # of a search that has nothing to scan
    progress.start(40)
    progress.advance(6, "resumed")  # whole tasks, at no time
    for _ in range(4):
        clock[0] += seconds
        progress.advance(amount, "affine4, step 1")
    progress.start(80)
    assert noted.totals == [0, 40, 80]
    assert noted.done == 6 + 4 * amount
    [said] = noted.notes
    assert said.startswith("a pass of affine4 takes ")
    assert said.endswith(f"about {total} for this scan")


@pytest.mark.parametrize(("count", "words"), [(1, "1 pass"), (2000, "2,000 passes"), (0, "0 passes")])
def test_numbers_have_the_plural_of_their_noun(count, words):
    assert outline.counted(count, "pass", "passes") == words
