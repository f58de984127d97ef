"""Writes the second half of reference.md, from the docstrings: python -m experiments.guide.make_reference."""

import inspect
import re
from pathlib import Path

import precision_lab

PAGE = Path(__file__).parent / "reference.md"
MARK = "<!-- from here on written by `python -m experiments.guide.make_reference` -->\n"


def signature(item: object) -> str:
    """The parameters as they are written, without modules before the names of types."""
    try:
        text = str(inspect.signature(item))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    if text in ("(*args, **kwargs)", "(*args: Any, **kwargs: Any)"):
        return ""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text.replace("<factory>", "..."))  # annotations are text
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])", "", text)


def paragraphs(item: object) -> str:
    """The docstring with its examples set as code. ValueError: there is none."""
    text = inspect.getdoc(item)
    if not text:
        raise ValueError(f"{item!r} has no docstring")
    return re.sub(r"::\n\n((?:    .*\n?|\n)+)", lambda m: ":\n\n```text\n" + inspect.cleandoc(m[1]) + "\n```\n", text)


def members(kind: type) -> list[str]:
    """A line for each public method and property that the class itself documents."""
    lines = []
    for name, member in vars(kind).items():
        item = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.isfunction(item) or not inspect.getdoc(item):
            continue
        parameters = (
            "" if isinstance(member, property) else re.sub(r"\((?:self|cls)(?:, )?", "(", signature(item), count=1)
        )
        lines.append(f"- `{name}{parameters}`: {' '.join(paragraphs(item).split())}")
    return lines


def text() -> str:
    parts = []
    for name in sorted(set(precision_lab.__all__) - {"__version__"}, key=str.lower):
        item = getattr(precision_lab, name)
        parts += [f"## {name}", f"`{name}{signature(item)}`", paragraphs(item)]
        if inspect.isclass(item) and (lines := members(item)):
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    kept = PAGE.read_text(encoding="utf-8").partition(MARK)[0].rstrip("\n")
    PAGE.write_text(f"{kept}\n\n{MARK}\n{text()}", encoding="utf-8")


if __name__ == "__main__":
    main()
