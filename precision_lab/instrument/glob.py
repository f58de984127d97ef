"""The grammar of site patterns: `component:glob`, the transformer if no component is named.

In the glob `*` stands for characters of one segment, `**` for any number of segments (at least one at the end),
`{a,b}` for alternatives and `{4..7}` for a range of numbers. `*` never crosses a dot.
"""

from __future__ import annotations

import re
from functools import lru_cache

from precision_lab.errors import InputError

DEFAULT_COMPONENT = "transformer"


def split_pattern(pattern: str) -> tuple[str, str]:
    """The component and the glob of a pattern."""
    component, _, glob = pattern.rpartition(":")
    return component or DEFAULT_COMPONENT, glob


@lru_cache(maxsize=1024)
def compile_glob(glob: str) -> re.Pattern[str]:
    """The regular expression of a glob. Raises InputError for one that is malformed."""
    alternatives = [_one(expanded) for expanded in _expand(glob)]
    return re.compile("|".join(f"(?:{a})" for a in alternatives))


def _one(glob: str) -> str:
    segments = glob.split(".")
    if not all(segments):
        raise InputError(f"Site pattern {glob!r} has an empty segment")
    parts = []
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if segment == "**":
            parts.append(r"(?:[^.]+\.)*[^.]+" if last else r"(?:[^.]+\.)*")
        elif "**" in segment:
            raise InputError(f"Site pattern {glob!r}: ** must be a whole segment")
        else:
            parts.append(re.escape(segment).replace(r"\*", "[^.]*") + ("" if last else r"\."))
    return "".join(parts)


def _expand(glob: str) -> list[str]:
    """Brace alternatives, the first group first; numbers of a range keep no leading zeros."""
    found = re.search(r"\{([^{}]*)\}", glob)
    if found is None:
        if "{" in glob or "}" in glob:
            raise InputError(f"Site pattern {glob!r} has an unmatched brace")
        return [glob]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    choices = [str(n) for n in range(int(span[1]), int(span[2]) + 1)] if span else found[1].split(",")
    head, tail = glob[: found.start()], glob[found.end() :]
    return [expanded for choice in choices for expanded in _expand(head + choice + tail)]
