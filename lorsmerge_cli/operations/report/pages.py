"""A report as Markdown, LaTeX and one self-contained HTML page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from lorsmerge_cli.operations.report.between import Between
from lorsmerge_cli.operations.report.tables import Table
from lorsmerge_cli.quoting import latex, markdown, one_line

WIDE = 9  # columns from which on a table is set smaller
# file -> what escapes a text for it; jinja2 itself escapes HTML
ESCAPES: dict[str, Callable[[str], str]] = {
    "report.html": one_line, "report.md": markdown, "tables.tex": latex,
}  # fmt: skip
# LaTeX has braces of its own, and `{%`
LATEX_SIGNS = {
    "variable_start_string": "<<", "variable_end_string": ">>", "block_start_string": "<%",
    "block_end_string": "%>", "comment_start_string": "<#", "comment_end_string": "#>",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A figure that was drawn.

    Attributes:
        name: of its files, without the ending.
        title, note: above and below it.
        alt: what it shows, for readers who cannot see it.
        svg, png: the drawing in each format.
    """

    name: str
    title: str
    note: str
    alt: str
    svg: bytes
    png: bytes = b""


@dataclass(frozen=True)
class Page:
    """The content of a report, in its order."""

    title: str
    about: tuple[str, ...]
    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    sources: tuple[str, ...]

    @property
    def entries(self) -> list[Table | Picture]:
        """The first table, the figures, the other tables."""
        return [*self.tables[:1], *self.pictures, *self.tables[1:]]


class Block(NamedTuple):
    """Neighbouring columns of one block: its name, the index of the first one, and their number."""

    name: str
    first: int
    width: int


def blocks_of(table: Table) -> list[Block]:
    """Return the blocks of a table's columns, in order."""
    blocks, first = [], 0
    for name, columns in groupby(block for _, block in table.heads):
        blocks.append(Block(name, first, len(list(columns))))
        first += blocks[-1].width
    return blocks


def render(file: str, page: Page | Between) -> str:
    r"""Return a report's text in one format.

    Args:
        file: `report.html`, which has style and figures inside, and fetches nothing; `report.md`,
            in GitHub's Markdown, with links to the figures' files; `tables.tex`, for \input; or
            `between.html`.
        page: the report's content.
    """
    return _environment(file).get_template(f"{file}.j2").render(page=page, wide=WIDE)


@cache
def _environment(file: str) -> Environment:
    """Return jinja2's settings for a file. Every value that a template shows is escaped."""
    escape = ESCAPES.get(file, one_line)
    signs: dict[str, Any] = LATEX_SIGNS if file == "tables.tex" else {}
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=file.endswith(".html"),
        finalize=lambda value: escape(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **signs,
    )
    environment.filters["blocks"] = blocks_of
    environment.filters["base64"] = lambda data: b64encode(data).decode()
    return environment


def write_pages(folder: Path, page: Page, between: Between | None = None) -> list[str]:
    """Write the report's files into a folder that exists, and return their names."""
    files = {file: render(file, page).encode() for file in ESCAPES}
    if between is not None:
        files["between.html"] = render("between.html", between).encode()
    for picture in page.pictures:
        files |= {
            f"figures/{picture.name}.svg": picture.svg,
            f"figures/{picture.name}.png": picture.png,
        }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return list(files)
