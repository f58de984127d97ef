"""Devices beside each other: in which behaviours, faults and verdicts their records differ.

A behaviour is named by its answer ("sequential", "propagates"), or it is a number ("23.0 bits", "4.3e-08"). Named
answers differ or not. A number counts as another one from one bit, or a factor of two, on; below that it is nearly the
same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from precision_lab.analysis.alike import leaves, text_of
from precision_lab.device.behaviour.finding import NOT_AVAILABLE
from precision_lab.device.behaviour.known import read_behaviour
from precision_lab.record.device import DeviceRecord

DIFFERS, OTHER, NEAR, SAME, PARTLY = "differs", "other number", "nearly the same", "same", "not measured by all"
"""How a behaviour, a fault or a verdict compares, the most important first."""

PRODUCTS, SUMS, ROUNDING = "Exactness of products", "Precision of sums, norms and attention", "Rounding"
RANDOM, RANGE, COMPILED = "Random numbers", "Range and non-finite values", "Compiled against eager"
OTHERS = "Other behaviours"
GROUPS = (PRODUCTS, SUMS, ROUNDING, RANDOM, RANGE, COMPILED, OTHERS)

_WIDTHS = ("input_bits", "accumulator_bits", "interior_bits", "every_row", "rounding_error")
_PRODUCTS = ("matmul", "quantized_matmul", "addmm", "gather", "dequantize")
_GROUP_OF = {
    **dict.fromkeys((*_WIDTHS, "error_growth", "count", "massive_channels", "far_positions"), SUMS),
    **dict.fromkeys(("rounds", "rounds_product", "order", "divisor", "normaliser", "product", "scalar"), ROUNDING),
    **dict.fromkeys(("key", "prefix", "range", "distribution"), RANDOM),
    **dict.fromkeys(("overflow", "range_inside", "subnormals", "nan", "row_of_minus_inf"), RANGE),
    "compiled": COMPILED,
}
_NO_FACTS = ("commit", "dirty")


@dataclass(frozen=True)
class Entry:
    """Something that was measured of several devices. what: its name in words. answers: of each device, or None."""

    group: str
    what: str
    answers: Sequence[str | None]
    verdict: str


@dataclass(frozen=True)
class Devices:
    """records: by label. facts: (name, whether it differs, its text of each device), those that differ first.

    behaviours, operations (the narrowest width of each and the verdict on S6), faults and claims: in order of the
    records, those that differ first. readings: which known devices each behaves like. bits: (operation, dtype) to the
    narrowest width of each device, NaN where none was measured.
    """

    records: Mapping[str, DeviceRecord]
    facts: Sequence[tuple[str, bool, Sequence[str]]]
    behaviours: Sequence[Entry]
    operations: Sequence[Entry]
    faults: Sequence[Entry]
    claims: Sequence[Entry]
    readings: Sequence[str]
    bits: Mapping[tuple[str, str], Sequence[float]]

    @property
    def is_equal(self) -> bool:
        """Whether no fact, behaviour, fault or verdict differs in anything."""
        entries = (*self.behaviours, *self.operations, *self.faults, *self.claims)
        return not any(differs for _, differs, _ in self.facts) and all(entry.verdict == SAME for entry in entries)

    def of_group(self, group: str) -> list[Entry]:
        return [entry for entry in self.behaviours if entry.group == group]

    def counts(self, group: str) -> Counter[str]:
        """How many behaviours of a group have each verdict."""
        return Counter(entry.verdict for entry in self.of_group(group))


def compare(records: Mapping[str, DeviceRecord]) -> Devices:
    """records: two or more by label."""
    each = list(records.values())
    behaviours = list(_ordered(_behaviours(each)))
    return Devices(
        records=records,
        facts=_facts(each),
        behaviours=behaviours,
        operations=list(_ordered(_operations(each))),
        faults=list(_ordered(_faults(each))),
        claims=list(_ordered(_claims(each))),
        readings=[read_behaviour(str(r.environment.get("backend")), r.findings)["text"] for r in each],
        bits=_bits(each),
    )


def _ordered(entries: Iterator[Entry]) -> list[Entry]:
    order = (DIFFERS, OTHER, PARTLY, NEAR, SAME)
    return sorted(entries, key=lambda entry: order.index(entry.verdict))


def _facts(records: Sequence[DeviceRecord]) -> Sequence[tuple[str, bool, Sequence[str]]]:
    known = [dict(leaves(dict(record.environment))) for record in records]
    found: list[tuple[str, bool, Sequence[str]]] = []
    for name in dict.fromkeys(key for one in known for key in one if key not in _NO_FACTS):
        texts = [text_of(one[name]) if name in one else "-" for one in known]
        found.append((name, len(set(texts)) > 1, texts))
    return [row for row in found if row[1]] + [row for row in found if not row[1]]


def _behaviours(records: Sequence[DeviceRecord]) -> Iterator[Entry]:
    known: list[dict[tuple[str, ...], list[Mapping[str, Any]]]] = []
    for record in records:
        own: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for finding in record.findings:
            sizes = ", ".join(f"{name} {value}" for name, value in sorted(finding["parameters"].items()))
            own.setdefault((finding["op"], finding["dtype"], finding["property"], sizes), []).append(finding)
        known.append(own)
    for key in dict.fromkeys(key for own in known for key in own):
        op, dtype, about, sizes = key
        found = [own.get(key, []) for own in known]
        answers = [" | ".join(dict.fromkeys(str(f["answer"]) for f in each)) or None for each in found]
        values = [each[0].get("value") if len(each) == 1 else None for each in found]
        units = {str(f.get("unit", "")) for each in found for f in each}
        verdict = _verdict(answers, values, units)
        if verdict not in (SAME, DIFFERS):
            answers = [_with_value(answer, value) for answer, value in zip(answers, values, strict=True)]
        what = f"{op}, {dtype}: {about.replace('_', ' ')}{f' ({sizes})' if sizes else ''}"
        yield Entry(_group(op, about), what, answers, verdict)


def _group(op: str, about: str) -> str:
    if about in _WIDTHS and op.split(",")[0].split(" ")[0] in _PRODUCTS:
        return PRODUCTS
    return _GROUP_OF.get(about, OTHERS)


def _with_value(answer: str | None, value: float | None) -> str | None:
    """A named answer with its number."""
    if answer is None or value is None or answer[:1].isdigit():
        return answer
    return f"{answer} ({value:.3g})"


def _verdict(answers: Sequence[str | None], values: Sequence[float | None], units: set[str]) -> str:
    """How answers compare. Those that begin with a digit are numbers, and compared by their values."""
    there = [answer not in (None, NOT_AVAILABLE) for answer in answers]
    measured = [str(answer) for answer, is_there in zip(answers, there, strict=True) if is_there]
    numbers = [value for value, is_there in zip(values, there, strict=True) if is_there]
    named = {answer for answer in measured if not answer[:1].isdigit()}
    if named and len(set(measured)) > 1:
        return DIFFERS
    if not measured or (len(measured) < len(answers) and set(answers) != {NOT_AVAILABLE}):
        return SAME if len(set(answers)) == 1 else PARTLY
    finite = [value for value in numbers if value is not None]
    if len(set(measured)) == 1 and len(set(numbers)) == 1:
        return SAME
    if len(finite) < len(numbers):
        return DIFFERS
    low, high = min(finite), max(finite)
    if units == {"bits"}:
        return OTHER if high - low >= 1 else NEAR
    return NEAR if named or high <= 2 * low else OTHER  # a named answer does not depend on its number


def _operations(records: Sequence[DeviceRecord]) -> Iterator[Entry]:
    """The narrowest width of each operation, in its verdict on S6."""
    known = [{str(op["op"]): op for op in record.operations} for record in records]
    for name in dict.fromkeys(name for own in known for name in own):
        found = [own.get(name) for own in known]
        verdicts = [None if op is None else str(op["verdict"]) for op in found]
        yield Entry("", name, verdicts, _verdict(verdicts, [None] * len(verdicts), set()))


def _faults(records: Sequence[DeviceRecord]) -> Iterator[Entry]:
    known = [{str(check["name"]): check for check in record.checks} for record in records]
    for name in dict.fromkeys(name for own in known for name in own):
        found = [own.get(name) for own in known]
        answers = [None if check is None else str(check["verdict"]) for check in found]
        verdict = _verdict(answers, [None] * len(answers), set())
        measured = {(check["answer"], check["measured"]) for check in found if check is not None}
        if verdict == SAME and len(measured) > 1:
            verdict = OTHER
            answers = [None if check is None else f"{check['verdict']}: {check['measured']}" for check in found]
        title = next(str(check["title"]) for check in found if check is not None)
        yield Entry(title, name, answers, verdict)


def _claims(records: Sequence[DeviceRecord]) -> Iterator[Entry]:
    known = [{str(claim.get("id")): claim for claim in record.claims} for record in records]
    for name in dict.fromkeys(name for own in known for name in own):
        found = [own.get(name) for own in known]
        verdicts = [None if claim is None else str(claim.get("verdict")) for claim in found]
        text = next(str(claim.get("text", "")) for claim in found if claim is not None)
        yield Entry(text, name, verdicts, _verdict(verdicts, [None] * len(verdicts), set()))


def _bits(records: Sequence[DeviceRecord]) -> Mapping[tuple[str, str], Sequence[float]]:
    known = [
        {(str(op["op"]), name): float(value) for op in record.operations for name, value in op["bits"].items()}
        for record in records
    ]
    keys = dict.fromkeys(key for own in known for key in own)
    return {key: [own.get(key, math.nan) for own in known] for key in keys}
