"""A result as a page, as Markdown and as a candidate's model card: a template each, in this folder.

The templates escape every value that they show. The page is self-contained, offline, without scripts: its content
security policy forbids every request, so it shows exactly what the file holds.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Final

import jinja2
from markupsafe import Markup

from edge_vla.bench.reports import agreement_tables, figures, performance_tables, tables, text, verdicts
from edge_vla.bench.reports.markdown import escaped, markdown_table
from edge_vla.bench.reports.sections import sections
from edge_vla.bench.reports.systems import failures
from edge_vla.bench.reports.table import Table
from edge_vla.bench.result import Result
from edge_vla.errors import UsageError
from edge_vla.suggestions import choose

IMAGE: Final = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")
HUB_ID: Final = re.compile(r"([\w.-]+/[\w.-]+)(@[\w./-]+)?")
NO_BREAK: Final = "\u00a0"


def html(result: Result) -> str:
    conditions = tables.conditions(result)
    first = figures.first(result)
    return _template("page.html.j2").render(
        result=result, sections=sections(result), conditions=conditions, first=first
    )


def markdown(result: Result) -> str:
    """Short enough for a CI step summary: the verdicts in the open, the figures behind them folded."""
    opened = [tables.gates(result, False, None), tables.summary(result), tables.non_inferiority(result)]
    folded = [tables.gates(result), *(table for section in sections(result) for table in section.all_tables)]
    titles = {table.title for table in opened[1:] if table}
    return _document(
        "report.md.j2",
        result,
        opened=filter(None, opened),
        folded=[table for table in (*folded, tables.conditions(result)) if table and table.title not in titles],
        ceilings=performance_tables.ceilings(result.limits),
    )


def model_card(result: Result, candidate_name: str) -> str:
    """For the Hugging Face Hub, with its front matter. Stands beside an artifact's hashed files, never among them: it
    reports a measurement, with its date and machine. Raises UsageError if the result has no such candidate.
    """
    candidate = next((row for row in result.candidates if row.name == candidate_name), None)
    if candidate is None:
        names = [row.name for row in result.candidates]
        raise UsageError(f"no candidate {candidate_name!r} in this result: {choose(candidate_name, names)}")
    # Only this candidate's figures, beside the reference and its floors.
    gates = [gate for gate in result.gates if gate.system == candidate_name]
    own = dataclasses.replace(result, candidates=[candidate], peers=[], gates=gates)
    shown = (
        tables.gates(own),
        tables.summary(own),
        agreement_tables.agreement(own),
        performance_tables.latency(own),
        tables.closed_loop(own),
        tables.non_inferiority(own),
    )
    return _document(
        "card.md.j2", own, candidate=candidate, base=HUB_ID.fullmatch(result.reference.name), shown=filter(None, shown)
    )


def _document(name: str, result: Result, **values: object) -> str:
    return _template(name).render(result=result, **values).rstrip() + "\n"


@cache
def _template(name: str) -> jinja2.Template:
    """With every value escaped, for HTML or for Markdown."""
    page = name.endswith(".html.j2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=page,
        finalize=None if page else _finalised,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(code=_code, image=_image, table=_table, tight=_tight)
    environment.globals.update(tables=tables, text=text, verdicts=verdicts, failures=failures)
    return environment.get_template(name)


def _finalised(value: object) -> str:
    return value if isinstance(value, Markup) else escaped(str(value))


def _table(found: Table) -> Markup:
    return Markup("\n".join(markdown_table(found)))  # its cells are escaped


def _code(line: str) -> Markup:
    return Markup(" ".join(line.split()))  # a line of an indented block, where nothing is markup


def _image(uri: str | None) -> bool:
    return uri is not None and IMAGE.fullmatch(uri) is not None


def _tight(cell: str) -> str:
    """A figure may break before its interval, nowhere else."""
    return cell.replace(" ", NO_BREAK).replace(NO_BREAK + "[", " [")
