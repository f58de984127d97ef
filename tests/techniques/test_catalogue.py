"""The guide's tables list the files of conf/technique."""

import re

from tests.techniques.configured import CONF, NAMES, named


def test_the_guide_lists_every_technique_with_its_claim():
    page = (CONF.parent / "experiments" / "guide" / "techniques.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \|[^|]+\|[^|]*\| (yes|no) \|", page, flags=re.MULTILINE))
    claims = {name: all(t.preserves_function for t in named(name).values()) for name in NAMES}
    assert listed == {name: "yes" if claim else "no" for name, claim in claims.items()}
