"""Text as GitHub's Markdown: names from users and files are literal, whatever they hold."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from urllib.parse import quote

from precision_lab.errors import visible

_READ = re.compile(r"[\\`*|$~]|(?<=\])[(:]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown, and GitHub's mathematics, read as more than text. An underscore inside a word is text."""

_ENTITY = re.compile(r"&(?=#?\w+;)")
_REFERENCE = re.compile(r"(?<=@)(?=\w)|(?<=#)(?=[0-9])")
"""Where GitHub would notify a person, or link another issue."""

_IN_URL = "/:?#@!$&'+,;=%~"


def literal(text: str) -> str:
    """`text` on one line in which Markdown, HTML and GitHub read nothing: no table, mathematics, mention or link."""
    line = _READ.sub(r"\\\g<0>", visible(" ".join(text.split())))
    return _REFERENCE.sub("<!-- -->", _ENTITY.sub("&amp;", line).replace("<", "&lt;"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str] = ()) -> str:
    """A table whose cells are literal, one line each row. numbers: the columns that are aligned to the right."""
    rule = "| " + " | ".join("---:" if name in numbers else "---" for name in header) + " |"
    head, *lines = ("| " + " | ".join(map(literal, row)) + " |" for row in (header, *rows))
    return "\n".join((head, rule, *lines))


def link(text: str, target: str) -> str:
    """A link. target: a relative path or an address, whose characters that Markdown reads are encoded."""
    return f"[{literal(text)}]({quote(target, safe=_IN_URL).replace('&', '&amp;')})"


def source(text: str) -> str:
    """The source of a claim: linked where it is an address, else literal text."""
    return link("source", text) if re.fullmatch(r"https://\S+", text) else literal(text)


def within(lines: Sequence[str], limit: int) -> list[str]:
    """The first lines that have up to `limit` characters together, with their line breaks."""
    kept: list[str] = []
    used = 0
    for line in lines:
        used += len(line) + 1
        if used > limit:
            break
        kept.append(line)
    return kept
