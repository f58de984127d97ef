"""The grammar of site patterns: `component:glob`; without a component, the default one of the subject's layout.

In the glob `*` matches characters of one segment, `**` any number of segments (at least one at the end),
`{a,b}` for alternatives, `{4..7}` for a range of numbers, and `{0,4..7}` for both. `*` never crosses a dot. A negative
number counts from the end of its list, as a Python index: it names nothing but in paths that `spell` has given their
lengths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

from precision_lab.errors import InputError, shown
from precision_lab.record.address import split_address

ROOT = "."
LONGEST = 4096
"""The most characters of a pattern."""
MOST = 4096
"""The most alternatives that the braces of a pattern may make."""
_DIGITS = 9


@lru_cache(maxsize=1024)
def compile_glob(glob: str) -> re.Pattern[str]:
    """The regular expression of a glob. Raises InputError for one that is malformed."""
    alternatives = [_one(expanded) for expanded in expand(glob)]
    return re.compile("|".join(f"(?:{a})" for a in alternatives))


def spell(paths: Iterable[str]) -> Mapping[str, str]:
    """Each path with its indices counted from both ends, for `compile_glob`: `transformer_blocks.59|-1.attn`.

    A list is as long as the largest index among `paths` says.
    """
    return _spelled(tuple(paths))


@lru_cache(maxsize=64)
def _spelled(paths: tuple[str, ...]) -> Mapping[str, str]:
    """As `spell`; a run walks the same model for every variant, and thousands of paths take 10 ms."""
    lengths: dict[str, int] = {}
    split = {path: path.split(".") for path in paths}
    for segments in split.values():
        for at, segment in enumerate(segments):
            if segment.isdecimal():
                holder = ".".join(segments[:at])
                lengths[holder] = max(lengths.get(holder, 0), int(segment) + 1)

    def both(segments: list[str], at: int) -> str:
        segment = segments[at]
        return f"{segment}|{int(segment) - lengths['.'.join(segments[:at])]}" if segment.isdecimal() else segment

    spelled = {path: ".".join(both(segments, at) for at in range(len(segments))) for path, segments in split.items()}
    return MappingProxyType(spelled)


def named_sites(patterns: Iterable[str], sites: Iterable[tuple[str, str]], default: str) -> list[tuple[str, str]]:
    """Those of `sites`, pairs of component and path, that a pattern names; `default` is the component of one without.

    A negative number counts from the last of the sites. Raises InputError for a malformed pattern.
    """
    of_component: dict[str, list[str]] = {}
    for component, path in sites:
        of_component.setdefault(component, []).append(path)
    spelled = {component: spell(paths) for component, paths in of_component.items()}
    split = [split_address(pattern, default) for pattern in patterns]
    expressions = [(component, compile_glob(glob)) for component, glob in split]
    return [
        (component, path)
        for component, paths in spelled.items()
        for path, spelling in paths.items()
        if any(component == own and expression.fullmatch(spelling) for own, expression in expressions)
    ]


def _one(glob: str) -> str:
    if glob == ROOT:
        return re.escape(ROOT)
    segments = glob.split(".")
    if not all(segments):
        raise InputError(f"Site pattern {glob!r} has an empty segment")
    # `**.**` matches what `**` matches, but several in a row would be tried in every combination
    segments = [segment for index, segment in enumerate(segments) if segments[index : index + 2] != ["**", "**"]]
    parts = []
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if segment == "**":
            parts.append(r"(?:[^.]+\.)*[^.]+" if last else r"(?:[^.]+\.)*")
        elif "**" in segment:
            raise InputError(f"Site pattern {glob!r}: ** must be a whole segment")
        else:
            named = re.escape(segment).replace(r"\*", "[^.|]*")
            from_end = re.fullmatch(r"-\d+", segment)
            parts.append((rf"[^.|]+\|{named}" if from_end else rf"{named}(?:\|-\d+)?") + ("" if last else r"\."))
    return "".join(parts)


def expand(glob: str) -> list[str]:
    """Brace alternatives, the first group first; numbers of a range keep no leading zeros."""
    if len(glob) > LONGEST:
        raise InputError(f"Site pattern {shown(glob)} has {len(glob)} characters, expected at most {LONGEST}")
    pending, found = [glob], list[str]()
    while pending:
        if len(pending) + len(found) > MOST:
            raise InputError(f"Site pattern {shown(glob)} has more than {MOST} alternatives")
        each = pending.pop(0)
        braces = re.search(r"\{([^{}]*)\}", each)
        if braces is None:
            if "{" in each or "}" in each:
                raise InputError(f"Site pattern {shown(glob)} has an unmatched brace")
            found.append(each)
            continue
        head, tail = each[: braces.start()], each[braces.end() :]
        pending[:0] = [head + choice + tail for choice in _choices(braces[1], glob)]
    return found


def _choices(group: str, glob: str) -> list[str]:
    """The alternatives inside one pair of braces, each a text or a range."""
    return [choice for part in group.split(",") for choice in _numbers(part, glob)]


def _numbers(part: str, glob: str) -> list[str]:
    """The numbers of a range such as `4..7`; any other text as it is."""
    span = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", part)
    if span is None:
        return [part]
    if max(map(len, span.groups())) > _DIGITS or int(span[2]) - int(span[1]) >= MOST:
        raise InputError(f"Site pattern {shown(glob)}: the range {{{shown(part)[1:-1]}}} has more than {MOST} numbers")
    choices = [str(number) for number in range(int(span[1]), int(span[2]) + 1)]
    if not choices:
        raise InputError(f"Site pattern {glob!r}: the range {{{part}}} is empty, its second number is below its first")
    return choices
