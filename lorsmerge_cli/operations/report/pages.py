"""A report's tables as Markdown, LaTeX and one HTML page that needs nothing beside itself."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from lorsmerge_cli.operations.report.tables import Cell, Table
from lorsmerge_cli.quoting import markdown as _md
from lorsmerge_cli.quoting import printable

WIDE = 9  # columns from which on a table is set smaller


@dataclass(frozen=True)
class Picture:
    """A figure that was drawn.

    Attributes:
        name: of its files, without the ending.
        title, note: above and below it.
        alt: what it shows, for whoever cannot see it.
        svg: the drawing.
    """

    name: str
    title: str
    note: str
    alt: str
    svg: bytes


@dataclass(frozen=True)
class Page:
    """What a report says, in its order."""

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


# --- Markdown -------------------------------------------------------------------------------------


def markdown(page: Page) -> str:
    """Tables in GitHub's Markdown, and links to the figures' files."""
    parts = [f"# {_md(page.title)}", *map(_md, page.about)]
    parts += [f"> **Note.** {_md(note)}" for note in page.notes]
    for entry in page.entries:
        drawn = (
            _md_table(entry)
            if isinstance(entry, Table)
            else f"![{_md(entry.alt)}](figures/{entry.name}.png)"
        )
        parts += [f"## {_md(entry.title)}", drawn, _md(entry.note)]
    parts += ["## Made from", "\n".join(f"- {_md(line)}" for line in page.sources)]
    return "\n\n".join(parts) + "\n"


def _md_table(table: Table) -> str:
    blocks = len({block for _, block in table.heads}) > 1
    heads = [
        f"{_md(head)}<br>{_md(block)}" if blocks and block else _md(head)
        for head, block in table.heads
    ]
    lines = ["| | " + " | ".join(heads) + " |"]
    lines.append("| --- |" + " ---: |" * len(heads))
    for label, indented, cells in table.rows:
        name = ("↳ " if indented else "") + _md(label)
        lines.append(f"| {name} | " + " | ".join(map(_md_cell, cells)) + " |")
    return "\n".join(lines)


def _md_cell(cell: Cell) -> str:
    text = f"**{_md(cell.text)}**" if cell.best else _md(cell.text)
    return text + _md(cell.mark) + (f" ({_md(cell.beside)})" if cell.beside else "")


# --- LaTeX ----------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "†": r"\textsuperscript{\textdagger}", "‡": r"\textsuperscript{\textdaggerdbl}",
    "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "\N{EN DASH}": "--", "\N{MINUS SIGN}": "$-$", "<": r"$<$", ">": r"$>$",
    "↳": r"$\hookrightarrow$", "§": r"\S{}",
}  # fmt: skip


def latex(page: Page) -> str:
    """Tables for \\input, with booktabs' rules."""
    head = "% \\usepackage{booktabs,graphicx} in the preamble; a wide table is scaled to the line."
    return "\n\n".join([head, *map(_latex_table, page.tables)]) + "\n"


def _latex_table(table: Table) -> str:
    lines = [
        r"\begin{table*}[t]", r"\centering", f"\\caption{{{_tex(table.title)}. {_tex(table.note)}}}",
        f"\\label{{tab:{table.name.replace('_', '-')}}}", r"\small",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        f"\\begin{{tabular}}{{l{'r' * len(table.heads)}}}", r"\toprule",
    ]  # fmt: skip
    blocks = _blocks(table)
    if any(block for block, _ in blocks):
        spans, rules, column = [], [], 2
        for block, width in blocks:
            spans.append(f"\\multicolumn{{{width}}}{{c}}{{{_tex(block)}}}")
            if block:
                rules.append(f"\\cmidrule(lr){{{column}-{column + width - 1}}}")
            column += width
        lines += [" & " + " & ".join(spans) + r" \\", "".join(rules)]
    lines += [" & " + " & ".join(_tex(head) for head, _ in table.heads) + r" \\", r"\midrule"]
    for label, indented, cells in table.rows:
        name = (r"\quad " if indented else "") + _tex(label)
        # {}: a label that begins with [ or * would be an argument of the line break before it
        lines.append("{}" + name + " & " + " & ".join(map(_tex_cell, cells)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table*}"])


def _tex_cell(cell: Cell) -> str:
    text = f"\\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text)
    return (
        text
        + _tex(cell.mark)
        + (f" {{\\footnotesize({_tex(cell.beside)})}}" if cell.beside else "")
    )


def _tex(text: str) -> str:
    return "".join(_LATEX.get(ch, ch) for ch in printable(" ".join(text.split())))


def _blocks(table: Table) -> list[tuple[str, int]]:
    """Neighbouring columns of one block, and how many there are."""
    return [(name, len(list(group))) for name, group in groupby(block for _, block in table.heads)]


# --- HTML -----------------------------------------------------------------------------------------

_STYLE = """
:root { --ink: #1c2430; --soft: #5a6675; --line: #c9d1da; --tint: #f3f6f9; --accent: #0b5c8a; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; color: var(--ink);
  background: #fff; font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .6rem; }
p, figcaption, li { max-width: 46rem; }
.about { color: var(--soft); margin: 0 0 .25rem; overflow-wrap: anywhere; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; margin: 1.25rem 0; }
a { color: var(--accent); }
.note { border-left: .25rem solid #b45309; background: #fdf6ec; padding: .6rem .9rem; margin: .75rem 0; max-width: 60rem; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible, a:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); }
th, td { padding: .32rem .6rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; }
thead th { white-space: normal; vertical-align: bottom; max-width: 11rem; }
thead tr:last-child th { border-bottom: 1px solid var(--ink); }
th.block { text-align: center; border-bottom: 1px solid var(--line); }
tbody th { text-align: left; font-weight: 400; position: sticky; left: 0; background: #fff; }
thead th:first-child { position: sticky; left: 0; background: #fff; text-align: left; }
tbody tr:hover th, tbody tr:hover td { background: var(--tint); }
tr.control th { padding-left: 1.6rem; }
tr.control th, tr.control td { color: var(--soft); }
tr.control strong { color: var(--ink); }
td.first, th.first { padding-left: 1.4rem; }
sup { color: var(--accent); line-height: 0; margin-left: .1em; }
.paper { color: var(--soft); font-size: .85em; margin-left: .35em; }
.wide { font-size: .88rem; }
.wide th, .wide td { padding: .28rem .4rem; }
.wide td.first, .wide th.first { padding-left: 1rem; }
.wide .paper { display: block; margin: -.25em 0 0; }
.below { color: var(--soft); font-size: .92rem; margin: .6rem 0 0; }
figure { margin: 0; }
figure img { max-width: 100%; height: auto; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: 1.25rem .9rem 3rem; } th, td { padding: .3rem .45rem; }
  tbody th { white-space: normal; min-width: 7.5rem; } }
@media print { body { max-width: none; font-size: 10pt; } .scroll { overflow: visible; } nav { display: none; } }
"""


def html_page(page: Page) -> str:
    """The whole report in one file: style and figures are inside, nothing is fetched."""
    links = "".join(f'<li><a href="#{e.name}">{_html(e.title)}</a></li>' for e in page.entries)
    body = [
        "<header>",
        f"<h1>{_html(page.title)}</h1>",
        *(f'<p class="about">{_html(line)}</p>' for line in page.about),
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>',
        *(f'<p class="note"><strong>Note.</strong> {_html(note)}</p>' for note in page.notes),
        "</header>",
        "<main>",
        *(line for entry in page.entries for line in _html_entry(entry)),
        "</main>",
        "<footer><h2>Made from</h2><ul>",
        *(f"<li>{_html(line)}</li>" for line in page.sources),
        "</ul></footer>",
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_html(page.title)}</title>",
            f"<style>{_STYLE}</style></head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def _html_entry(entry: Table | Picture) -> Iterator[str]:
    return _html_table(entry) if isinstance(entry, Table) else _html_picture(entry)


def _html_table(table: Table) -> Iterator[str]:
    yield f'<section id="{table.name}" aria-labelledby="{table.name}-title">'
    yield f'<h2 id="{table.name}-title">{_html(table.title)}</h2>'
    yield f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{table.name}-title">'
    wide = ' class="wide"' if len(table.heads) > WIDE else ""
    yield f'<table{wide} aria-describedby="{table.name}-note"><thead>'
    starts = _starts(table)
    blocks = _blocks(table)
    if any(block for block, _ in blocks):
        yield "<tr><td></td>"
        for block, width in blocks:
            kind = ' class="block" scope="colgroup"' if block else ""
            yield (
                f'<th colspan="{width}"{kind}>{_html(block)}</th>'
                if block
                else (f'<td colspan="{width}"></td>')
            )
        yield "</tr>"
    yield '<tr><th scope="col">System</th>'
    for number, (head, _) in enumerate(table.heads):
        yield f'<th scope="col"{_first(number, starts)}>{_html(head)}</th>'
    yield "</tr></thead><tbody>"
    for label, indented, cells in table.rows:
        kind = ' class="control"' if indented else ""
        arrow = "↳ " if indented else ""
        yield f'<tr{kind}><th scope="row">{arrow}{_html(label)}</th>'
        for number, cell in enumerate(cells):
            yield f"<td{_first(number, starts)}>{_html_cell(cell)}</td>"
        yield "</tr>"
    yield "</tbody></table></div>"
    yield f'<p class="below" id="{table.name}-note">{_html(table.note)}</p></section>'


def _starts(table: Table) -> set[int]:
    """Columns that a block begins with."""
    places, column = set(), 0
    for _, width in _blocks(table):
        places.add(column)
        column += width
    return places


def _first(number: int, starts: set[int]) -> str:
    return ' class="first"' if number in starts else ""


def _html_cell(cell: Cell) -> str:
    text = f"<strong>{_html(cell.text)}</strong>" if cell.best else _html(cell.text)
    mark = f"<sup>{_html(cell.mark)}</sup>" if cell.mark else ""
    return (
        text + mark + (f'<span class="paper">({_html(cell.beside)})</span>' if cell.beside else "")
    )


def _html_picture(picture: Picture) -> Iterator[str]:
    data = base64.b64encode(picture.svg).decode()
    yield f'<section id="{picture.name}" aria-labelledby="{picture.name}-title">'
    yield f'<h2 id="{picture.name}-title">{_html(picture.title)}</h2>'
    yield f'<figure><img alt="{_html(picture.alt)}" src="data:image/svg+xml;base64,{data}">'
    yield f'<figcaption class="below">{_html(picture.note)}</figcaption></figure></section>'


def _html(text: str) -> str:
    return html.escape(printable(" ".join(text.split())))


def write_pages(folder: Path, page: Page, pictures: Sequence[tuple[str, bytes]]) -> list[str]:
    """Write the report's files into a folder; their names.

    Args:
        folder: that exists.
        page: what is written in each format.
        pictures: names and bytes of the figures' files.
    """
    files = {
        "report.html": html_page(page).encode(),
        "report.md": markdown(page).encode(),
        "tables.tex": latex(page).encode(),
    } | {f"figures/{name}": drawn for name, drawn in pictures}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return list(files)
