"""The verdict as JUnit XML, which CI services display, with a test case per kind of comparison and component."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

from precision_lab.analysis.gate.markdown import text_table
from precision_lab.analysis.gate.violation import KINDS, Findings, Violation, by_site

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def document(experiment: str, findings: Findings, components: Sequence[str]) -> str:
    """One test suite. A failed case contains its violations as a table, in reading order.

    components: those of the baseline. A kind of comparison that belongs to no component (times) is one case.
    """
    cases = _cases(findings, components)
    failed = Counter(case for case, violations in cases.items() if violations)
    suite = ElementTree.Element("testsuite", name=f"gate.{experiment}", tests=str(len(cases)))
    suite.set("failures", str(len(failed)))
    suite.set("errors", "0")
    suite.set("skipped", "0")
    for (kind, component), violations in cases.items():
        case = ElementTree.SubElement(suite, "testcase", classname=f"gate.{experiment}.{kind}", name=component)
        if violations:
            lines = by_site(violations)
            first = lines[0]
            beyond = f", {first.magnitude:.2f} bits beyond" if math.isfinite(first.magnitude) else ""
            message = f"{len(lines)} sites, first {first.first.address}: {first.first.metric} {first.first.got}{beyond}"
            failure = ElementTree.SubElement(case, "failure", type=kind, message=_clean(message))
            failure.text = _clean(text_table(violations))
    suites = ElementTree.Element("testsuites", tests=suite.get("tests", ""), failures=suite.get("failures", ""))
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _cases(findings: Findings, components: Iterable[str]) -> dict[tuple[str, str], list[Violation]]:
    """(kind, component) -> violations, in the order of KINDS, for every kind that was compared."""
    whole = ("variants", "latency", "memory")
    cases: dict[tuple[str, str], list[Violation]] = {}
    for kind in KINDS:
        if findings.checks[kind]:
            parts = ["all"] if kind in whole else components
            cases |= {(kind, part): [] for part in parts}
        for violation in findings.violations:
            if violation.kind == kind:
                cases.setdefault((kind, "all" if kind in whole else violation.component), []).append(violation)
    return cases


def _clean(text: str) -> str:
    """Removes characters that XML cannot contain, which an exception's message may have."""
    return _NOT_XML.sub("?", text)
