"""Regular expressions of other programs, matched in time that is linear in the name, whoever wrote them.

Python's `re` tries alternatives one after another, so that an expression from a file can keep it busy for years. Here
all rules of a file become one automaton (Thompson, Regular expression search algorithm, CACM 11(6), 1968), whose sets
of states are determined as names need them. The grammar is what ECMAScript and Python share and such rules use:
characters, `.`, classes, groups, `|`, the quantifiers `* + ?` and {m,n}, `^` at the beginning and `$` at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from precision_lab.errors import InputError, shown

MOST_STATES = 100_000
"""The most states of all rules of a file together."""
MOST_WORK = 2_000_000
"""The most states that are visited for a file, which bounds time and memory."""
_MOST_REPEATS = 100
_DEEPEST = 50

Test = Callable[[str], bool]
_DIGIT: Test = str.isdecimal
_CLASSES: dict[str, Test] = {
    "d": _DIGIT,
    "D": lambda c: not c.isdecimal(),
    "w": lambda c: c.isalnum() or c == "_",
    "W": lambda c: not (c.isalnum() or c == "_"),
    "s": str.isspace,
    "S": lambda c: not c.isspace(),
}


class Automaton:
    """States, each with a test of the character that leads on from it, or none if it needs no character."""

    def __init__(self) -> None:
        self.tests: list[Test | None] = []
        self.after: list[list[int]] = []

    def state(self, test: Test | None = None, *after: int) -> int:
        """The number of a new state that leads to those in `after`."""
        if len(self.tests) >= MOST_STATES:
            raise ValueError(f"the expressions of the file have more than {MOST_STATES} states")
        self.tests.append(test)
        self.after.append(list(after))
        return len(self.tests) - 1

    def link(self, state: int, after: int) -> None:
        self.after[state].append(after)

    def closed(self, states: Iterable[int]) -> frozenset[int]:
        """The states that can be reached without a character."""
        pending, found = list(states), set[int]()
        while pending:
            state = pending.pop()
            if state not in found:
                found.add(state)
                if self.tests[state] is None:
                    pending += self.after[state]
        return frozenset(found)

    def moved(self, states: Iterable[int], character: str) -> list[int]:
        """The states that `character` leads to."""
        tests = ((state, self.tests[state]) for state in states)
        return [after for state, test in tests if test is not None and test(character) for after in self.after[state]]


class Rules:
    """Expressions in order, and which of them are found in a name.

    Raises InputError, with a message that begins with `what`, for an expression outside the grammar.
    """

    def __init__(self, expressions: Iterable[str], what: str):
        self._what = what
        self._automaton = Automaton()
        self._accepting: dict[int, tuple[int, bool]] = {}  # state: number of the rule, whether only at the end
        self._starts: list[int] = []
        self._anywhere: list[int] = []
        for number, text in enumerate(expressions):
            self._add(number, text)
        self._begin = self._automaton.closed(self._starts)
        self._known: dict[frozenset[int], dict[str, frozenset[int]]] = {}
        self._ends: dict[frozenset[int], list[tuple[int, bool]]] = {}
        self._work = 0

    def first(self, name: str) -> int | None:
        """The number of the first expression that is found in `name`, or None."""
        return min(self.all(name), default=None)

    def all(self, name: str) -> set[int]:
        """The numbers of all expressions that are found in `name`."""
        states = self._begin
        found = self._accepted(states, not name)
        for at, character in enumerate(name):
            states = self._step(states, character)
            if not states:
                break
            found |= self._accepted(states, at == len(name) - 1)
        return found

    def _step(self, states: frozenset[int], character: str) -> frozenset[int]:
        known = self._known.setdefault(states, {})
        if character not in known:
            known[character] = self._automaton.closed([*self._automaton.moved(states, character), *self._anywhere])
            self._work += len(states) + len(known[character])
            if self._work > MOST_WORK:
                raise InputError(
                    f"{self._what}: its expressions leave too much open, expected names or simple patterns"
                )
        return known[character]

    def _accepted(self, states: frozenset[int], at_end: bool) -> set[int]:
        if states not in self._ends:
            self._ends[states] = [self._accepting[state] for state in states if state in self._accepting]
        return {number for number, only_end in self._ends[states] if at_end or not only_end}

    def _add(self, number: int, text: str) -> None:
        at_start, at_end = text.startswith("^"), text.endswith("$") and not text.endswith(r"\$")
        try:
            begin, end = _Parser(text[at_start : len(text) - at_end], self._automaton).whole(at_start or at_end)
        except (ValueError, IndexError, RecursionError) as error:
            reason = str(error) if type(error) is ValueError else "it ends in the middle"
            raise InputError(f"{self._what}: cannot read the expression {shown(text)}: {reason}") from error
        self._starts.append(begin)
        if not at_start:
            self._anywhere.append(begin)
        self._accepting[end] = (number, at_end)


class _Parser:
    """Makes states of an expression. A part of it is the pair of its first and its last state."""

    def __init__(self, text: str, automaton: Automaton):
        self._text, self._at, self._depth = text, 0, 0
        self._state, self._link = automaton.state, automaton.link

    def whole(self, anchored: bool) -> tuple[int, int]:
        """The whole expression. anchored: whether `^` or `$` is around it, which alternatives would not share."""
        first = self._sequence() if anchored else self._alternatives()
        if self._at < len(self._text):
            raise ValueError(f"unexpected {self._text[self._at]!r}")
        return first

    def _alternatives(self) -> tuple[int, int]:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError(f"groups are nested more than {_DEEPEST} deep")
        parts = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._sequence())
        self._depth -= 1
        end = self._state()
        begin = self._state(None, *(first for first, _ in parts))
        for _, last in parts:
            self._link(last, end)
        return begin, end

    def _sequence(self) -> tuple[int, int]:
        begin = last = self._state()
        while self._peek() not in ("", "|", ")"):
            first, end = self._repeated()
            self._link(last, first)
            last = end
        return begin, last

    def _repeated(self) -> tuple[int, int]:
        start = self._at
        part = self._atom()
        low, high = self._quantifier()
        if (low, high) == (1, 1):
            return part
        stop, copies = self._at, [part]
        for _ in range(max(low, high or 0, 1) - 1):
            self._at = start
            copies.append(self._atom())
        self._at = stop
        begin, end = self._state(None, copies[0][0]), self._state()
        for number, (_, last) in enumerate(copies, 1):
            if number >= low:
                self._link(last, end)
            if number < len(copies):
                self._link(last, copies[number][0])
        if high is None:
            self._link(copies[-1][1], copies[-1][0])
        if low == 0:
            self._link(begin, end)
        return begin, end

    def _quantifier(self) -> tuple[int, int | None]:
        """The least and the most repeats, None without bound."""
        bounds: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        mark = self._peek()
        if mark in bounds:
            self._at += 1
            found = bounds[mark]
        elif mark == "{":
            end = self._text.find("}", self._at)
            low, comma, high = self._text[self._at + 1 : end].partition(",")
            if not low.isdecimal() or (high and not high.isdecimal()) or len(low) > 4 or len(high) > 4:
                raise ValueError("expected numbers in {}")
            found = int(low), (int(high) if high else None) if comma else int(low)
            if max(found[0], found[1] or 0) > _MOST_REPEATS or (found[1] is not None and found[1] < found[0]):
                raise ValueError(f"expected at most {_MOST_REPEATS} repeats, the least first")
            if found[1] == 0:
                raise ValueError("{0} says nothing")
            self._at = end + 1
        else:
            return 1, 1
        if self._peek() in ("?", "+", "*", "{"):
            if self._peek() != "?":
                raise ValueError("two quantifiers in a row")
            self._at += 1  # a lazy one finds the same names
        return found

    def _atom(self) -> tuple[int, int]:
        character = self._take()
        if character == "(":
            if self._peek() == "?":
                if not self._text.startswith("?:", self._at):
                    raise ValueError(f"(?{self._text[self._at + 1 : self._at + 2]} is not supported")
                self._at += 2
            part = self._alternatives()
            if self._take() != ")":
                raise ValueError("a group is not closed")
            return part
        if character in "*+?{)^$":
            raise ValueError(f"unexpected {character!r}")
        end = self._state()
        return self._state(self._test(character), end), end

    def _test(self, character: str) -> Test:
        if character == ".":
            return lambda _: True
        if character == "\\":
            return self._escape()
        if character == "[":
            return self._class()
        return character.__eq__

    def _escape(self) -> Test:
        escaped = self._take()
        if escaped in _CLASSES:
            return _CLASSES[escaped]
        if escaped.isalnum():
            raise ValueError(rf"\{escaped} is not supported")
        return escaped.__eq__

    def _class(self) -> Test:
        negated = self._peek() == "^"
        self._at += negated
        tests: list[Test] = []
        while (character := self._take()) != "]" or not tests:
            if character == "\\":
                tests.append(self._escape())
            elif self._peek() == "-" and self._text[self._at + 1] != "]":
                self._at += 1
                tests.append(partial(_between, character, self._take()))
            else:
                tests.append(character.__eq__)
        return lambda c: any(test(c) for test in tests) != negated

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]


def _between(first: str, last: str, character: str) -> bool:
    return first <= character <= last
