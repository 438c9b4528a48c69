"""Reports in the XML that CI systems read: a suite for every report, a case for every line that has a limit.

Format: the JUnit schema as Jenkins, GitLab and GitHub's reporters read it (testsuites, testsuite, testcase, failure).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from exporter.report.table import failure_text, plain_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exporter.report.report import Report
    from runtime.budget import Line

_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped: control characters of a terminal's colours, for example."""


def junit(reports: Mapping[str, Report]) -> str:
    """The XML of reports by name."""
    root = ElementTree.Element("testsuites", name="packlight")
    for name, report in reports.items():
        _suite(root, name, report)
    for key in ("tests", "failures"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _suite(root: ElementTree.Element, name: str, report: Report) -> None:
    judged = [line for line in report.lines if line.ok is not None]
    suite = ElementTree.SubElement(
        root, "testsuite", name=_clean(name), tests=str(len(judged)), failures=str(len(report.failing)),
        timestamp=report.provenance.created.rstrip("Z"),
    )  # fmt: skip
    where = report.measurement.host if report.measurement else {"on": "not measured", "cpu": "not measured"}
    known = {
        "artifact": report.artifact.entry_path,
        "command": report.provenance.command,
        "packlight": report.provenance.version,
        "measured on": where.get("on", "local"),
        "cpu": where.get("cpu", "unknown"),
    }
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in known.items():
        ElementTree.SubElement(properties, "property", name=key, value=_clean(str(value)))
    for line in judged:
        _case(suite, name, line)
    ElementTree.SubElement(suite, "system-out").text = _clean("\n".join((plain_table(report.lines), *report.notes)))


def _case(suite: ElementTree.Element, name: str, line: Line) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_clean(f"packlight.{name}"), name=_clean(line.name))
    if not line.ok:
        ElementTree.SubElement(case, "failure", message=_clean(failure_text(line)), type="budget")


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
