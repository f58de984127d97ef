"""Patterns of names as regular expressions in the grammar of `recipes.expressions`."""

from __future__ import annotations

from collections.abc import Iterable


def expression(glob: str) -> str:
    """The expression, without anchors, of a glob as `patterns_of` makes it: names, `*`, braces of texts and ranges."""
    text, at = [], 0
    while at < len(glob):
        if glob[at] == "{":
            end = glob.index("}", at)
            choices = [choice for part in glob[at + 1 : end].split(",") for choice in _choices(part)]
            text.append(f"({'|'.join(map(escaped, choices))})")
            at = end + 1
        elif glob.startswith("**", at):
            text.append(".+")
            at += 2
        else:
            text.append("[^.]+" if glob[at] == "*" else escaped(glob[at]))
            at += 1
    return "".join(text)


def wildcards(pattern: str) -> str:
    """The expression, without anchors, of a pattern of Python's `fnmatch`: `*` and `?` match any characters."""
    return "".join({"*": ".*", "?": "."}.get(c) or escaped(c) for c in pattern)


def escaped(text: str) -> str:
    """The expression of the very text."""
    return "".join(c if c.isalnum() or c == "_" else rf"\{c}" for c in text)


def _choices(part: str) -> Iterable[str]:
    first, dots, last = part.partition("..")
    return map(str, range(int(first), int(last) + 1)) if dots else (part,)
