"""A report of systems and data sets with a stranger's names: the same page, with other text in it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from golden_files import golden
from hostile import NAMES, STEERS, Dom, Elements, links_and_html, shape
from results_files import delta, merge, record, write_results

from lorsmerge_cli import report as run
from lorsmerge_cli.operations.report.numbers import MINUS, NONE
from lorsmerge_cli.operations.report.pages import Page, Picture, render
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


def plain_page() -> Page:
    """A page with all that a report may have: controls, marks, averages, intervals, blocks, notes."""
    asr, st = "WER % ↓", "BLEU ↑"
    heads = (("ca", asr), ("de§", asr), ("Avg.", asr), ("±", asr), ("ca", st), ("Avg.", st))
    scores = (
        ("Pretrained", False, (Cell("17.02", beside="18.1"), Cell("16.50"), Cell("16.76", beside="19.05"),
                               Cell("0.41"), Cell("67.60"), Cell("67.60"))),
        ("fine-tuned", False, (Cell("10.10", best=True, mark="†"), Cell(NONE), Cell("10.10", mark="*†"),
                               Cell("0.30"), Cell("78.40", mark="†"), Cell("78.40", mark="†"))),
        ("lors (SVP 0.05, MP 0.2)", False, (Cell("11.23", mark="†", beside="12.0"), Cell("11.00", best=True),
                                            Cell("11.12", best=True), Cell("0.33"),
                                            Cell("66.01", mark="‡"), Cell("66.01", mark="‡"))),
        ("ta_as_lors", True, (Cell("11.20"), Cell("11.05"), Cell("11.13"), Cell("0.35"), Cell(""),
                              Cell(""))),
    )  # fmt: skip
    gains = (
        ("[tuned] * (languages 2)", False, (Cell(f"{MINUS}5.12 ± 0.40 (0.20)", mark="†"), Cell("87 %", beside="80 to 94"))),
        ("& own", False, (Cell("refused"), Cell(f"{MINUS}3 %", beside=f"{MINUS}9 to 3"))),
    )  # fmt: skip
    wide = tuple((f"l{number}", asr) for number in range(10))
    tables = (
        Table("scores", "Scores", "Avg. is the plain mean over languages, ± its standard error.", heads, scores),
        Table("gain_asr", "Gain kept, ASR", "In percent; (a - b) / (c - b) < 1.", (("change", asr), ("gap", asr)), gains),
        Table("systems", "The systems", "own: deltas differ.", (("made by", ""), ("lambda", "")),
              (("lors", False, (Cell("merge lors"), Cell("0.1 to 0.15"))),)),
        Table("retention", "Where no delta was made for it: forgotten or gained", "50% & more.", wide,
              (("base", False, tuple(Cell(f"{number}.00") for number in range(10))),)),
    )  # fmt: skip
    picture = Picture("languages", "Score against the number of languages", "The paper's Figure 3.",
                      "WER % ↓ against languages merged. lors: 11.23 at 2, 11.00 at 3.", b"<svg/>")  # fmt: skip
    return Page(
        "Merged models", ("Systems: 4; 30 utterances for each score.", "lorsmerge 1.0; nrefs:1|case:mixed"),
        ("Mixed settings: beam is 1 in a.json; 20 in b.json.",), tables, (picture,), ("results/a_1.json", "b.json"),
    )  # fmt: skip


def hostile_page() -> Page:
    """A page on which every string of a stranger's is another name, wherever one may stand."""
    names = list(NAMES.values())
    heads = tuple(zip(names[:4], ["", "", *names[4:6]], strict=True))
    rows = tuple(
        (name, number % 2 == 1, tuple(
            Cell(names[(number + n) % len(names)], best=n == 1, mark=name if n == 2 else "",
                 beside=name if n == 3 else "") for n in range(len(heads))
        ))
        for number, name in enumerate(names)
    )  # fmt: skip
    table = Table("scores", " ".join(names), " and ".join(names), heads, rows)
    pictures = tuple(
        Picture(f"figure{n}", name, "", name, b"<svg/>") for n, name in enumerate(names)
    )
    return Page(names[0], tuple(names), tuple(names), (table,), pictures, tuple(names))


PAGES = pytest.mark.parametrize(
    ("name", "made"),
    [("plain", plain_page()), ("hostile", hostile_page())],
    ids=["plain", "hostile"],
)


@PAGES
def test_html_is_the_page_that_was_found_right(name: str, made: Page) -> None:
    text = render("report.html", made)
    assert Dom(text).found == Dom(golden(f"report_{name}.html", text)).found


@PAGES
def test_markdown_is_the_page_that_was_found_right(name: str, made: Page) -> None:
    text = render("report.md", made)
    assert text == golden(f"report_{name}.md", text)


@PAGES
def test_latex_is_what_was_found_right(name: str, made: Page) -> None:
    text = render("tables.tex", made)
    assert text == golden(f"tables_{name}.tex", text)


@EVERY_NAME
def test_html_has_the_same_elements(name: str) -> None:
    made = render("report.html", page(name))
    assert Elements(made).found == Elements(render("report.html", page("x"))).found
    made.encode()
    assert not STEERS.search(made)


@EVERY_NAME
def test_markdown_has_the_same_blocks(name: str) -> None:
    made, like = render("report.md", page(name)), render("report.md", page("x"))
    assert shape(made) == shape(like)
    assert links_and_html(made) == links_and_html(like) == ["<br>", "<br>", "figures/energy.png"]
    made.encode()
    assert not STEERS.search(made)


@EVERY_NAME
def test_latex_has_the_same_commands(name: str) -> None:
    """Beside those that spell a character there is nothing new, and no line, column or comment more."""
    made, like = render("tables.tex", page(name)), render("tables.tex", page("x"))
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
