"""The report's block of retention: gain on what was merged, loss elsewhere."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest
from report_calls import cells, table
from results_files import delta, merge, record, write_results

from lorsmerge_cli import report
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.operations.report.figures import figures_of
from lorsmerge_cli.operations.report.results import read_results
from lorsmerge_cli.operations.report.roles import Paper, Roles, find_roles
from lorsmerge_cli.operations.report.tables import Tables

MERGED = [("cv_ca", "ca", "asr"), ("cv_de", "de", "asr"), ("cv_ca", "ca", "st")]
OTHERS = [("fleurs_fr", "fr", "asr"), ("fleurs_it", "it", "asr"), ("fleurs_it", "it", "st"),
          ("other_it", "it", "asr"), ("fleurs_ca", "ca", "asr")]  # fmt: skip
ASR, ST = "WER %", "BLEU"
SHARES = {"pretrained": (0.3, 0.3), "ta": (0.1, 0.5), "lors": (0.1, 0.2)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    deltas = [delta("ca_asr"), delta("de_asr"), delta("ca_st")]
    made = {"pretrained": {}, "ta": merge("ta", *deltas), "lors": merge("lors", *deltas)}
    records = [record(name, key, wrong) for name, (wrong, _) in SHARES.items() for key in MERGED]
    records += [record(name, key, wrong) for name, (_, wrong) in SHARES.items() for key in OTHERS]
    return write_results(tmp_path / "r.json", records, made)


def mean(system: str, keys: list[tuple[str, str, str]], share: int) -> float:
    return fmean(record(system, key, SHARES[system][share]).score for key in keys)


def test_gain_and_loss_are_differences_of_means_over_what_they_are_of(
    file: Path, tmp_path: Path
) -> None:
    found = report(file, tmp_path / "out", retention=["fleurs_fr, fleurs_it", "fleurs_ca"])
    shown = cells(found, "balance")
    assert set(shown) == {"ta", "lors"}
    for system, row in shown.items():
        own = [*MERGED[:2], OTHERS[4]]  # the merge is known to be made for Catalan
        gains = mean("pretrained", MERGED[:2], 0) * 2 + mean("pretrained", OTHERS[4:], 1)
        ours = mean(system, MERGED[:2], 0) * 2 + mean(system, OTHERS[4:], 1)
        gain = (gains - ours) / len(own)
        loss = mean(system, OTHERS[:2], 1) - mean("pretrained", OTHERS[:2], 1)
        for head, value in (("gain, merged", gain), ("loss, elsewhere", loss)):
            told = row[head, ASR].text.replace("\N{MINUS SIGN}", "-")
            assert float(told.split(" ")[0]) == pytest.approx(value, abs=0.006)
            assert " ± " in told
        bleu = mean("pretrained", OTHERS[2:3], 1) - mean(system, OTHERS[2:3], 1)
        told = row["loss, elsewhere", ST].text.replace("\N{MINUS SIGN}", "-")
        assert float(told.split(" ")[0]) == pytest.approx(bleu, abs=0.006)
    assert "the test sets fleurs_fr, fleurs_it, fleurs_ca" in table(found, "balance").note
    assert found.document["roles"]["retention"] == ["fleurs_fr", "fleurs_it", "fleurs_ca"]


def test_without_names_elsewhere_is_all_that_a_model_was_not_made_for(
    file: Path, tmp_path: Path
) -> None:
    keys = [OTHERS[0], OTHERS[1], OTHERS[3]]
    loss = mean("ta", keys, 1) - mean("pretrained", keys, 1)
    told = cells(report(file, tmp_path / "out"), "balance")["ta"]["loss, elsewhere", ASR].text
    assert float(told.split(" ")[0]) == pytest.approx(loss, abs=0.006)


def test_of_models_that_nothing_is_known_of_the_named_sets_are_elsewhere(tmp_path: Path) -> None:
    keys = [("cv", "ca", "asr"), ("fleurs", "ca", "asr")]
    records = [record(name, key, wrong) for name, wrong in (("base", 0.3), ("m", 0.1)) for key in keys]  # fmt: skip
    file = write_results(tmp_path / "r.json", records)
    found = report(file, tmp_path / "out", retention="fleurs")
    assert table(found, "scores").heads[0][0] == "ca"
    gain = record("base", keys[0], 0.3).score - record("m", keys[0], 0.1).score
    shown = cells(found, "balance")["m"]["gain, merged", ASR].text
    assert float(shown.split(" ")[0]) == pytest.approx(gain, abs=0.006)
    assert "balance" not in {each.name for each in report(file, tmp_path / "two").tables}


def test_a_figure_has_a_point_for_each_system(file: Path, tmp_path: Path) -> None:
    results = read_results([file])
    roles = find_roles(results, Roles(None, None, None, {}, (), (), retention=["fleurs_it"]))
    figure = next(f for f in figures_of(Tables(results, roles, Paper())) if f.name == "balance")
    assert [[dot.name for dot in panel.dots] for panel in figure.panels] == [["ta", "lors"]] * 2
    assert figure.panels[0].dots[0].y > 0 > figure.panels[0].dots[1].y  # lost, and gained
    assert figure.panels[1].dots[0].y > 0 > figure.panels[1].dots[1].y  # higher BLEU is better
    found = report(file, tmp_path / "out")
    assert "figures/balance.svg" in found.files


def test_a_set_that_no_result_is_on_is_told(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match=r"--retention: no result is on 'fleurs_ti'\. Did you mean 'fleurs_it'\?"):  # fmt: skip
        report(file, tmp_path / "out", retention="fleurs_fr,fleurs_ti")


def test_a_loss_in_another_unit_than_the_gain_is_shown_where_it_was_asked_for(
    tmp_path: Path,
) -> None:
    keys = [("cv", "ca", "asr"), ("fleurs", "fr", "st")]
    made = {"base": {}, "m": merge("ta", delta("ca_asr"))}
    records = [record(name, key, wrong) for name, wrong in (("base", 0.3), ("m", 0.4)) for key in keys]  # fmt: skip
    file = write_results(tmp_path / "r.json", records, made)
    shown = cells(report(file, tmp_path / "out", retention="fleurs"), "balance")["m"]
    assert shown["loss, elsewhere", ASR].text == shown["gain, merged", ST].text == "\N{EN DASH}"
    assert shown["loss, elsewhere", ST].text.startswith("+")
