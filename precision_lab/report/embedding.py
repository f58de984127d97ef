"""What a page embeds to be interactive: scripts, data as JSON, and a policy that allows nothing else.

A page names its scripts. A name in `assets` is one of ours, a name in `vendor` a library that is kept as a file there.
Without scripts a page is whole: tables and static figures are all in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from markupsafe import Markup

FIRST = ("page.js",)
"""Scripts of every page that run before its content is there."""

ALWAYS = ("theme.js", "sortable.js")
"""Scripts of every page; those of the page itself follow them."""

_ESCAPES = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"})


def scripts(names: Iterable[str]) -> Markup:
    """The elements of these scripts, in their order. Raises FileNotFoundError for one that is not kept here."""
    return Markup("\n").join(Markup(f"<script>{source(name)}</script>") for name in names)


def data(blocks: Mapping[str, Any]) -> Markup:
    """One element for each id, with its value as strict JSON; a script reads it with `lab.data(id)`.

    Raises ValueError for a number that is not finite: a caller says in words what became of it.
    """
    return Markup("\n").join(
        Markup('<script type="application/json" id="{}">').format(name) + Markup(_json(value)) + Markup("</script>")
        for name, value in blocks.items()
    )


def policy(names: Iterable[str]) -> str:
    """A content security policy: these scripts, styles of the page, data URIs; no network."""
    hashes = " ".join(f"'sha256-{_digest(source(name))}'" for name in names)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


@cache
def source(name: str) -> str:
    """The text of a script as it is embedded: nothing in it ends the element that it is in."""
    here = resources.files("precision_lab.report")
    file = next((path for path in (here / "assets" / name, here / "vendor" / name) if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"no script {name} in assets or vendor")
    # in a string, a template or an expression, where these can be, the backslash changes nothing
    return re.sub(r"<(?=/script|!--)", r"<\\", file.read_text(encoding="utf-8").strip(), flags=re.IGNORECASE)


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
