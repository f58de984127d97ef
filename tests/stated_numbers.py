"""Numbers that a page states, compared with the committed results that they rest on.

A page names the source of a block (paragraph, list or table) in an HTML comment directly above it. Three kinds exist.

`numbers`: each value occurs in the block, in this order, rounded to the digits that the page shows::

    <!-- numbers: results/reference/cpu/findings/summary.json
    claims/S1_drift: verdict; effect; ci95
    variants/baseline/latency/median_s * 1000
    -->

`table`: the numbers in each cell after the first are the values of its row and column, no more and no fewer. `@2` names
the second file, before a column or a row; a cell without a number is left out, unless a text is expected::

    <!-- table: results/reference/cpu/findings/summary.json
    columns: latent_rel_l2 | latency/ratio; latency/ci95
    rows: variants/baseline; variants/float16
    -->

`claims`: a table whose columns are the claim's id, its text, verdict, effect with interval, and noise floor.

A path is a list of keys separated by `/`. In a list of objects a key selects by id, and `name=value` by another field.
`*` takes all. ` * 1000` scales the values, and ` | median` reduces them. A list gives all its values.
"""

import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERDICTS = ("supported", "refuted", "inconclusive")

_COMMENT = re.compile(r"<!--\s*(numbers|table|claims):\s*([^\n]*\.json)\s*(.*?)\s*-->", re.DOTALL)
_SKIPPED = re.compile(r"(?:\s*<!--.*?-->)*\s*", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.,/-])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e-?\d+)?(?![\w]*[A-Za-z_])")
_VERDICT = re.compile(rf"\b({'|'.join(VERDICTS)})\b")
_UNREAD = re.compile(r"`[^`\n]*`|\]\([^)\n]*\)|\b[A-Z]\d\b|\d{4}-\d{2}-\d{2}")  # code, link targets, names, dates
_REDUCTIONS = {"median": statistics.median, "max": max, "min": min, "count": len}

Value = float | str | None
Span = tuple[int, int]


@dataclass(frozen=True)
class Statement:
    """One annotated block. start: offset of the block in the page's text."""

    kind: str
    files: tuple[Path, ...]
    body: str
    start: int
    block: str


def statements(text: str) -> Iterator[Statement]:
    for match in _COMMENT.finditer(text):
        start = _SKIPPED.match(text, match.end()).end()  # type: ignore[union-attr]
        block = text[start:].split("\n\n", 1)[0]
        files = tuple(ROOT / name for name in match[2].split())
        yield Statement(match[1], files, match[3], start, block)


def check(statement: Statement) -> tuple[list[str], list[Span]]:
    """What the block states wrongly, and the spans of its text (offsets in the block) that were compared."""
    return {"numbers": _check_numbers, "table": _check_table, "claims": _check_claims}[statement.kind](statement)


def agrees(shown: str, value: float) -> bool:
    """Whether `shown` is `value`, rounded to the digits shown; one digit is enough for a whole number only."""
    mantissa, _, exponent = shown.replace(",", "").partition("e")
    decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
    if not exponent and "." not in mantissa and float(value).is_integer():
        return float(mantissa) == value
    significant = mantissa.replace(".", "").lstrip("-0")
    half = 0.5 * 10.0**-decimals
    return len(significant) >= 2 and abs(float(shown.replace(",", "")) - value) <= half * (1 + 1e-9)


@cache
def _load(file: Path) -> object:
    return json.loads(file.read_text())


def _select(node: object, segments: list[str]) -> Iterator[Value]:
    if segments:
        for item in _children(node, segments[0]):
            yield from _select(item, segments[1:])
    elif isinstance(node, list):
        for item in node:
            yield from _select(item, [])
    elif isinstance(node, bool) or not isinstance(node, (int, float, str, type(None))):
        raise ValueError(f"{node!r:.60} is no value")
    else:
        yield node


def _children(node: object, key: str) -> list[object]:
    field, equals, value = key.partition("=")
    if isinstance(node, dict):
        if equals:
            return [node] if str(node.get(field)) == value else []
        return [node[key]] if key in node else [v for k, v in node.items() if fnmatchcase(k, key)]
    if not isinstance(node, list):
        return []
    if key == "*":
        return node
    if key.isdigit():
        return node[int(key) : int(key) + 1]
    wanted = (field, value) if equals else ("id", key)
    return [item for item in node if isinstance(item, dict) and str(item.get(wanted[0])) == wanted[1]]


def values(files: tuple[Path, ...], entry: str) -> list[Value]:
    """The values of one entry: a path with an optional file (`@2 `), factor (` * 1000`) and reduction (` | median`).

    ValueError: the path leads nowhere, or to something that is no value.
    """
    path, _, reduction = (part.strip() for part in entry.partition(" | "))
    path, _, factor = (part.strip() for part in path.partition(" * "))
    file = 0
    if path.startswith("@"):
        number, _, path = path[1:].partition(" ")
        file = int(number) - 1
    try:
        found = list(_select(_load(files[file]), path.split("/")))
    except ValueError as error:
        raise ValueError(f"{files[file].relative_to(ROOT)}: {path}: {error}") from None
    if not found:
        raise ValueError(f"{files[file].relative_to(ROOT)}: nothing at {path}")
    if reduction:
        found = [float(_REDUCTIONS[reduction](found))]
    return [v * float(factor) if factor and isinstance(v, (int, float)) else v for v in found]


def _tokens(text: str) -> list[re.Match[str]]:
    return list(_NUMBER.finditer(_UNREAD.sub(lambda m: "`" * len(m[0]), text)))


def _check_numbers(statement: Statement) -> tuple[list[str], list[Span]]:
    entries = []
    for line in statement.body.splitlines():
        prefix, colon, rest = line.partition(": ")
        entries += [f"{prefix.strip()}/{entry.strip()}" for entry in rest.split(";")] if colon else [line.strip()]
    problems, spans, position, tokens = [], [], 0, _tokens(statement.block)
    for entry in filter(None, entries):
        for value in values(statement.files, entry):
            if value in VERDICTS:
                found = _VERDICT.search(statement.block, position)
                found = found if found and found[0] == value else None
            elif isinstance(value, str):
                found = re.compile(re.escape(value)).search(statement.block, position)
            else:
                ahead = (token for token in tokens if token.start() >= position)
                found = next((t for t in ahead if value is not None and agrees(t[0], value)), None)
            if found is None:
                problems.append(f"{entry} is {value!r}, which the block does not state here")
            else:
                spans.append(found.span())
                position = found.end()
    return problems, spans


def _rows(block: str) -> list[list[tuple[int, str]]]:
    """The table's body: cells with their offsets in the block."""
    rows, offset = [], 0
    for line in block.splitlines(keepends=True):
        cells, at = [], offset + 1
        for cell in line.strip().strip("|").split("|"):
            cells.append((at, cell))
            at += len(cell) + 1
        rows.append(cells)
        offset += len(line)
    return rows[2:]


def _check_cell(cell: str, expected: list[Value], where: str) -> tuple[list[str], list[Span]]:
    tokens, words = _tokens(cell), [value for value in expected if isinstance(value, str)]
    numbers = [value for value in expected if isinstance(value, (int, float))]
    problems = [f"{where}: {word} is not in {cell.strip()!r}" for word in words if word not in cell]
    stated = list(_VERDICT.finditer(cell))
    if len(tokens) != len(numbers) or not all(map(agrees, (t[0] for t in tokens), numbers)):
        problems.append(f"{where}: {cell.strip()!r}, expected {numbers}")
    if [v[0] for v in stated] != [w for w in words if w in VERDICTS]:
        problems.append(f"{where}: {cell.strip()!r}, expected {words}")
    return problems, [t.span() for t in (*tokens, *stated)]


def _split_file(entry: str) -> tuple[str, str]:
    """The `@2 ` before an entry, if any, and the rest."""
    file, space, rest = entry.partition(" ")
    return (f"{file} ", rest) if entry.startswith("@") and space else ("", entry)


def _check_table(statement: Statement) -> tuple[list[str], list[Span]]:
    spec = dict(line.split(": ", 1) for line in statement.body.replace("\n  ", " ").splitlines())
    columns = [column.split(";") for column in re.split(r"\|(?! (?:median|max|min|count))", spec["columns"])]
    prefixes, rows = [prefix.strip() for prefix in spec["rows"].split(";")], _rows(statement.block)
    problems, spans = [], []
    if len(prefixes) != len(rows):
        return [f"{len(rows)} rows, {len(prefixes)} sources"], []
    for prefix, cells in zip(prefixes, rows, strict=True):
        for column, (at, cell) in zip(columns, cells[1:], strict=True):
            expected = []
            for entry in filter(None, map(str.strip, column)):
                file, path = _split_file(entry)
                row_file, row = _split_file(prefix)
                expected += values(statement.files, f"{file or row_file}{row}/{path}")
            if not _tokens(cell) and not any(isinstance(value, str) for value in expected):
                continue
            wrong, compared = _check_cell(cell, expected, prefix)
            problems += wrong
            spans += [(at + first, at + last) for first, last in compared]
    return problems, spans


def claims_listed(statement: Statement) -> list[str]:
    return [cells[0][1].strip().strip("`") for cells in _rows(statement.block)]


def _check_claims(statement: Statement) -> tuple[list[str], list[Span]]:
    problems, spans = [], []
    for name, cells in zip(claims_listed(statement), _rows(statement.block), strict=True):
        (text,) = values(statement.files, f"claims/{name}/text")
        if cells[1][1].strip() != text:
            problems.append(f"{name}: the text is {text!r}")
        for (at, cell), fields in zip(cells[2:], (["verdict"], ["effect", "ci95"], ["noise_floor"]), strict=True):
            expected = [v for f in fields for v in values(statement.files, f"claims/{name}/{f}") if v is not None]
            wrong, compared = _check_cell(cell, expected, name)
            problems += wrong
            spans += [(at + first, at + last) for first, last in compared]
    return problems, spans
