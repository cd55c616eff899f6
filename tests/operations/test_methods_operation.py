"""`methods`: a row for each method there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorsmerge_cli.app import app
from lorsmerge_cli.core.coefficients import RULES
from lorsmerge_cli.core.methods import METHODS
from lorsmerge_cli.operations.methods import methods, rules


def test_a_row_for_each_method() -> None:
    rows = methods()
    assert [row.name for row in rows] == list(METHODS)
    assert all(re.fullmatch(r"\w+ 20\d\d, \d{4}\.\d{5}", row.paper) for row in rows)


def test_a_row_for_each_rule() -> None:
    shown = CliRunner().invoke(app, ["methods"]).stdout
    document = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)
    assert [row["name"] for row in document["rules"]] == list(RULES)
    assert document["rules"][0]["parameters"] == {"alpha": 1.0, "beta": None}
    assert all(row.name in shown and row.formula in shown for row in rules())
    assert re.search(r"^ *lines .* alpha \(1\), beta +Wang 2024, ", shown, re.M)
    page = Path(__file__).parents[2].joinpath("docs/merging.md").read_text(encoding="utf-8")
    assert [name for name in RULES if f"`{name}" not in page] == []


@pytest.mark.parametrize("page", ["docs/methods.md", "docs/merging.md"])
def test_the_pages_name_every_method(page: str) -> None:
    text = Path(__file__).parents[2].joinpath(page).read_text(encoding="utf-8")
    assert [name for name in METHODS if f"`{name}`" not in text] == []


def test_the_command_prints_them_all() -> None:
    shown = CliRunner().invoke(app, ["methods"])
    assert shown.exit_code == 0
    assert all(row.name in shown.stdout and row.formula in shown.stdout for row in methods())
    assert re.search(r"^ *k +ties +0\.2 +share of .* +above 0 and at most 1 *$", shown.stdout, re.M)
    assert re.search(r"^ *iso_c +--combine iso_c .* all +mean ", shown.stdout, re.M)
    document = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)
    assert [row["scale"] for row in document["methods"]] == [row.scale for row in methods()]
    assert re.search(r"around +mp, svp, lors, dare, star", shown.stdout)
    ties = next(row for row in document["methods"] if row["name"] == "ties")
    assert (ties["pruner"], ties["combiner"], ties["rest"]) == ("", "ties", "ties")
    assert [(p["name"], p["default"]) for p in ties["parameters"]] == [("k", 0.2)]


def test_the_tables_explain_their_symbols_and_no_row_is_wider_than_a_wide_terminal() -> None:
    """One table of everything took 200 columns, and folded to a letter or two in 80."""
    shown = CliRunner().invoke(app, ["methods"]).stdout
    assert "t_i: lambda_i times delta i of one tensor; T: the number of deltas" in shown
    assert "--stats: or --calibrate AUDIO" in shown
    rows = [line for line in shown.splitlines() if line.startswith(" ")]
    assert max(len(line.rstrip()) for line in rows) <= 160
