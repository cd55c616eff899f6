"""A report of systems and data sets with a stranger's names: the same page, with other text in it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from hostile import NAMES, STEERS, Elements, links_and_html, shape
from report_calls import run
from results_files import delta, merge, record, write_results

from lorsmerge_cli.operations.report.pages import Page, Picture, html_page, latex, markdown
from lorsmerge_cli.operations.report.tables import Cell, Table
from lorsmerge_cli.pictures import legible

EVERY_NAME = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
COMMANDS = re.compile(r"\\[A-Za-z]+")


def page(name: str) -> Page:
    """A page whose every string of a stranger's is one name."""
    cell = Cell(name, best=True, mark=name, beside=name)
    rows = ((name, False, (cell, Cell(name))), (name, True, (Cell(name), cell)))
    table = Table("scores", name, name, ((name, name), (name, "block")), rows)
    picture = Picture("energy", name, name, name, b"<svg/>")
    return Page(name, (name,), (name,), (table,), (picture,), (name, name))


@EVERY_NAME
def test_html_has_the_same_elements(name: str) -> None:
    made = html_page(page(name))
    assert Elements(made).found == Elements(html_page(page("x"))).found
    made.encode()
    assert not STEERS.search(made)


@EVERY_NAME
def test_markdown_has_the_same_blocks(name: str) -> None:
    made, like = markdown(page(name)), markdown(page("x"))
    assert shape(made) == shape(like)
    assert links_and_html(made) == links_and_html(like) == ["<br>", "<br>", "figures/energy.png"]
    made.encode()
    assert not STEERS.search(made)


@EVERY_NAME
def test_latex_has_the_same_commands(name: str) -> None:
    """Beside those that spell a character there is nothing new, and no line, column or comment more."""
    made, like = latex(page(name)), latex(page("x"))
    spelled = {r"\textbackslash", r"\textasciitilde", r"\textasciicircum"}
    of_names = [found for found in COMMANDS.findall(made) if found not in spelled]
    assert of_names == COMMANDS.findall(like)
    assert len(made.splitlines()) == len(like.splitlines())
    without = re.sub(r"\\[&%$#_{}]", "", made)  # characters that are escaped
    for sign in "&%#_":
        assert without.count(sign) == re.sub(r"\\[&%$#_{}]", "", like).count(sign)
    for opened, closed in (("{", "}"),):
        assert without.count(opened) == without.count(closed)
    made.encode()
    assert not STEERS.search(made)


@EVERY_NAME
def test_a_name_in_a_picture_is_drawn_letter_by_letter(name: str) -> None:
    from matplotlib.figure import Figure

    for math in (True, False):
        with matplotlib.rc_context({"text.parse_math": math, "font.family": "DejaVu Sans"}):
            figure = Figure()
            axes = figure.add_subplot(title=legible(name[:60]))
            axes.plot([1, 2], label=legible(f"_{name[:60]}"))
            text = axes.legend().get_texts()[0]
            assert text._preprocess_math(text.get_text())[1] is False


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
@pytest.mark.parametrize(
    "key", ["script", "rows", "latex", "escapes", "bidi", "surrogate", "braces"]
)
def test_a_report_of_hostile_results_is_whole(tmp_path: Path, key: str) -> None:
    name = NAMES[key]
    cell = ("data", "ca", "asr")
    records = [replace(record("base", cell, 0.3), dataset=name)]
    made = {}
    for number, ratio in enumerate((0.05, 0.1, 0.2)):
        called = f"{name}:{number}"
        made[called] = merge("svp", delta("ca_asr", svp=ratio))
        records.append(replace(record(f"m{number}", cell, ratio), dataset=name, model=called))
    path = write_results(tmp_path / "r.json", records, {"base": {}} | made)
    run([path], tmp_path / "out", title=name, base="base", runs=True)
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert {tag for tag, _ in Elements(text).found}.isdisjoint(
        {"script", "iframe", "link", "object"}
    )
    assert not STEERS.search(text)
    assert not STEERS.search((tmp_path / "out" / "report.md").read_text("utf-8"))
    assert not STEERS.search((tmp_path / "out" / "tables.tex").read_text("utf-8"))
    pictures = list((tmp_path / "out").rglob("*.svg"))
    assert pictures
    for drawn in pictures:
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(drawn).iter()}
        assert tags.isdisjoint({"script", "a", "foreignObject", "image"})
