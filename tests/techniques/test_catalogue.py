"""The guide's tables list the files of conf/technique."""

import re

from precision_lab.model.codings.convrot import ConvRot, ConvRotInputs
from precision_lab.model.codings.float8 import Float8Inputs
from precision_lab.model.codings.wide import Wide
from precision_lab.techniques.coded_weights import CodedWeights
from tests.techniques.configured import CONF, NAMES, named


def test_the_guide_lists_every_technique_with_its_claim():
    page = (CONF.parent / "experiments" / "guide" / "techniques.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \|[^|]+\|[^|]*\| (yes|no) \|", page, flags=re.MULTILINE))
    claims = {name: all(t.preserves_function for t in named(name).values()) for name in NAMES}
    assert listed == {name: "yes" if claim else "no" for name, claim in claims.items()}


def test_every_rounding_of_inputs_ships_alone_so_that_its_error_can_be_told_from_that_of_the_weights():
    coded = {name: t for name in NAMES for t in named(name).values() if isinstance(t, CodedWeights)}
    rounding = {name: t for name, t in coded.items() if t.inputs is not None}
    alone = {name: t.inputs for name, t in rounding.items() if isinstance(t.coding, Wide)}
    assert all(name.startswith("only_inputs_") for name in alone)
    assert len(alone) >= 9
    both = {name: t for name, t in rounding.items() if name not in alone}
    assert {"int8_inputs", "int4_convrot_inputs", "svdquant_inputs", "nvfp4_scaled_inputs"} <= set(both)
    for name, technique in both.items():
        is_rotated = isinstance(technique.coding, ConvRot)
        found = ConvRotInputs(technique.inputs, technique.coding.group) if is_rotated else technique.inputs
        assert found in alone.values(), name
    assert Float8Inputs() in alone.values()  # those of `fp8`
