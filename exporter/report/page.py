"""One self-contained HTML page about one artifact, or about several beside each other.

The figures are inline SVG written by templates and not by a plotting library: their text is text, found by a search,
their colours follow the reader's scheme, a page has some dozen kB, and nothing heavy is installed. Each is read out as
its title, its description and the table below it; the text inside is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from exporter.report.article import article
from exporter.report.compare import compare
from exporter.report.figures import HEIGHT, LEFT, TOP, WIDTH
from exporter.report.report import utc_now, version
from exporter.report.stored import DAMAGED, founds_at, with_tensors
from runtime.atomic import write_text
from runtime.errors import ArtifactError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporter.report.article import Article
    from exporter.report.compare import Comparison
    from exporter.report.report import Report
    from exporter.report.stored import Found
    from runtime.artifact import Artifact

T = TypeVar("T")

PAGE = "report.html"
_HERE = Path(__file__).parent
_BEGINS, _OURS, _HEAD = b"<!doctype html>", b'<meta name="generator" content="packlight ', 1024
"""How a page of ours begins, and what stands within its first so many bytes."""


def write_page(paths: Sequence[Path], out: Path) -> None:
    """Write the page of the reports at `paths`. Raises UserError and its kin, before anything is written."""
    refuse_other_file(out)
    founds = [found for path in paths for found in founds_at(path)]
    text = page(founds[0]) if len(founds) == 1 else comparison(founds)
    try:
        write_text(out, text)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another file") from error


def refuse_other_file(out: Path) -> None:
    """Raise UserError where `out` is there and no page of packlight's: a model, or a page that somebody wrote."""
    if out.is_dir():
        raise UserError(f"{out}: is a directory; name a file, such as {out / 'page.html'}")
    if not out.exists():
        return
    if not out.is_file():  # reading a pipe or a terminal would wait for ever
        raise UserError(f"{out}: is there and no regular file; name another file")
    with out.open("rb") as file:
        begins = file.read(_HEAD)
    if not begins.startswith(_BEGINS) or _OURS not in begins:
        raise UserError(f"{out}: is there and no page of packlight's; name another file, or remove it")


def page_of(report: Report, artifact: Artifact) -> str:
    """The page of a report that was just made. artifact: where its files lie now. Raises ArtifactError."""
    return page(with_tensors(artifact, report.to_json(), artifact.entry))


def page(found: Found) -> str:
    """The page of one report. Raises ArtifactError for a damaged one."""
    return _guarded(found.where, lambda: _render_one(article(found)))


def comparison(founds: Sequence[Found]) -> str:
    """The page of several reports. Raises UserError where they are of two kinds, ArtifactError for damaged ones."""
    articles = [_article(found, f"artifact-{index}") for index, found in enumerate(founds, 1)]
    return _guarded(f"{founds[0].where} or one of the others", lambda: _render_several(compare(founds), articles))


def _guarded(where: str, draw: Callable[[], T]) -> T:
    """What `draw` gives, in whose numbers and texts anything may stand. Raises ArtifactError."""
    try:
        return draw()
    except DAMAGED as error:
        fix = "export or measure the artifact again"
        raise ArtifactError(f"{where}: is a damaged report ({error!r:.200}); {fix}") from error


def _article(found: Found, id: str) -> Article:
    return _guarded(found.where, lambda: article(found, id))


def _render_one(one: Article) -> str:
    return _render("one.html.j2", one=one, title=one.title, made=utc_now(), version=version())


def _render_several(found: Comparison, articles: Sequence[Article]) -> str:
    labels = [row[0] for row in found.table.rows]
    return _render(
        "several.html.j2", compared=found, articles=list(zip(labels, articles, strict=True)), title=found.title,
        made=utc_now(), version=version(),
    )  # fmt: skip


def _render(template: str, **context: object) -> str:
    """Names come from models of unknown origin: everything is escaped, and what UTF-8 cannot say becomes "?"."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=True,
    )  # fmt: skip
    environment.globals.update(left=LEFT, right=LEFT + WIDTH, top=TOP, bottom=TOP + HEIGHT)
    return environment.get_template(template).render(context).encode(errors="replace").decode()
