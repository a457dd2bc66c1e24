"""The gates as JUnit XML: one test case a gate, for whatever shows tests."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree

from edge_vla.bench.reports import text as words
from edge_vla.bench.reports.systems import Result

# What XML 1.0 cannot carry, not even escaped.
FORBIDDEN: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(result: Result) -> str:
    gates = result["gates"]
    counts = {
        "tests": str(len(gates)),
        "failures": str(sum(gate["passed"] is False for gate in gates)),
        "skipped": str(sum(gate["passed"] is None for gate in gates)),
        "errors": "0",
        "time": "0",
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": _clean(result["model"]["name"]), **counts})
    suite.set("timestamp", _clean(result["environment"]["time"]))
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("result", result["name"]),
        ("speaks_for", result["model"]["speaks_for"]),
        ("commit", result["environment"]["commit"]),
        ("device", result["environment"]["device"]),
    ):
        ElementTree.SubElement(properties, "property", name=name, value=_clean(words.value_of(value)))
    for gate in gates:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_clean(gate["side"]), name=_clean(gate["name"]), time="0"
        )
        said = f"value {words.value_of(gate['value'])}, bound {words.value_of(gate['bound'])}: {gate['why']}"
        if gate["passed"] is False:
            ElementTree.SubElement(case, "failure", message=_clean(said), type="gate")
        elif gate["passed"] is None:
            ElementTree.SubElement(case, "skipped", message=_clean(said))
        else:
            ElementTree.SubElement(case, "system-out").text = _clean(said)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    return FORBIDDEN.sub("\ufffd", text)
