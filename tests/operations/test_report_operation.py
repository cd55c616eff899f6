"""`report` as an operation: its numbers against jiwer, sacreBLEU and the paired test called directly."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, ClassVar

import jiwer
import pytest
import sacrebleu
from report_calls import cells, table
from results_files import (
    SCORING,
    SPEAKERS,
    delta,
    finetune,
    hypotheses,
    merge,
    record,
    reported,
    write_results,
)
from scipy.stats import t as student

from lorsmerge_cli import pictures
from lorsmerge_cli import report as run
from lorsmerge_cli.errors import LorsmergeError, Mismatch, OutputFault, UnreadableFile, UsageFault
from lorsmerge_cli.metrics.bleu import BLEU, statistics
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.metrics.normalisation import normalise
from lorsmerge_cli.metrics.significance import Comparison, Floats, block_sums, compare, holm
from lorsmerge_cli.metrics.wer import WER, count_rows, error_statistics
from lorsmerge_cli.operations.report.numbers import MINUS, NONE
from lorsmerge_cli.results.records import score

ASR = [("ca", "ca", "asr"), ("de", "de", "asr"), ("fr", "fr", "asr")]
ST = [("ca", "ca", "st"), ("de", "de", "st"), ("fr", "fr", "st")]
WRONG = {  # share of the words
    "pretrained": {"asr": 0.30, "st": 0.30},
    "finetuned": {"asr": 0.15, "st": 0.28},
    "ta": {"asr": 0.17, "st": 0.22},
    "lors": {"asr": 0.12, "st": 0.22},
    "ta_as_lors": {"asr": 0.20, "st": 0.20},
}
BOTH = ("ca_asr", "ca_st", "de_asr", "de_st")
MADE = {
    "pretrained": {},
    "ta": merge("ta", *(delta(name) for name in BOTH)),
    "lors": merge("lors", *(delta(name, svp=0.05, mp=0.2) for name in BOTH)),
    "ta_as_lors": merge("ta", *(delta(name, scale=0.18) for name in BOTH)),
}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Results of a base, merges of Catalan and German scored on French too, and fine-tunes."""
    found = [
        write_results(
            tmp_path / f"{name}.json",
            [record(name, cell, WRONG[name][cell[2]]) for cell in ASR + ST],
            {name: made},
        )
        for name, made in MADE.items()
    ]
    for cell in [*ASR[:2], *ST[:2]]:  # a file for each fine-tune, all of one name
        name = f"{cell[1]}_{cell[2]}"
        made = {"finetuned": finetune(name)}
        one = record("finetuned", cell, WRONG["finetuned"][cell[2]])
        found.append(write_results(tmp_path / f"ft_{name}.json", [one], made))
    return found


def block(task: str) -> str:
    return "BLEU ↑" if task == "st" else "WER % ↓"


WER_METRIC = replace(
    WER, score=lambda sums: WER.score(sums) / 100
)  # in errors per word, not in percent


def direct(model: str, cell: tuple[str, str, str]) -> float:
    """The score by jiwer or sacreBLEU."""
    rows = hypotheses(model, cell, WRONG[model][cell[2]])
    if cell[2] == "st":
        return sacrebleu.corpus_bleu(
            [r.hypothesis for r in rows], [[r.reference for r in rows]]
        ).score
    pair = [[normalise(getattr(row, side), "basic") for row in rows]
            for side in ("reference", "hypothesis")]  # fmt: skip
    return 100 * jiwer.wer(*pair)


def blocks(model: str, cell: tuple[str, str, str], wrong: float | None = None) -> Floats:
    rows = hypotheses(model, cell, WRONG[model][cell[2]] if wrong is None else wrong)
    if cell[2] == "st":
        table = statistics(rows, Scoring())
    else:
        table = error_statistics(count_rows(rows, "basic", "word"))
    return block_sums(table, [row.speaker for row in rows])


def paired(a: str, b: str, *some: tuple[str, str, str]) -> Comparison:
    """Of b less a, on average over data sets of one task."""
    metric = BLEU if some[0][2] == "st" else WER_METRIC
    return compare([(blocks(a, cell), blocks(b, cell)) for cell in some], metric)


def expected_marks(found: list[Comparison], tasks: list[str]) -> list[str]:
    """Of all tests of a table."""
    corrected = holm([test.p_value for test in found])
    return [
        "" if p >= 0.05 else "†" if (test.difference > 0) == (task == "st") else "‡"
        for test, p, task in zip(found, corrected, tasks, strict=True)
    ]


def made_for(model: str) -> list[tuple[str, str, str]]:
    """What stands in the table of scores: what a model was made for, and the base's all."""
    return [*ASR[:2], *ST[:2]]


# --- scores and tests -----------------------------------------------------------------------------


def test_scores_are_those_of_jiwer_and_sacrebleu(files: list[Path], tmp_path: Path) -> None:
    found = cells(run(files, tmp_path / "out"), "scores")
    assert list(found) == ["pretrained", "finetuned", "ta", "lors", "ta_as_lors"]
    for model in WRONG:
        for task, some in (("asr", ASR[:2]), ("st", ST[:2])):
            own = [direct(model, cell) for cell in some]
            shown = [found[model][cell[1], block(task)].text for cell in some]
            assert shown == [f"{value:.2f}" for value in own]
            assert found[model]["Avg.", block(task)].text == f"{fmean(own):.2f}"
            errors = [record(model, cell, WRONG[model][task]).standard_error for cell in some]
            error = math.sqrt(sum(e * e for e in errors)) / 2
            assert found[model]["±", block(task)].text == f"{error:.2f}"


@pytest.mark.parametrize("against", ["ta", "pretrained", "lors"])
def test_marks_are_those_of_paired_tests_corrected_for_their_number(
    files: list[Path], tmp_path: Path, against: str
) -> None:
    found = cells(run(files, tmp_path / "out", against=against), "scores")
    heads = [(cell[1], [cell]) for cell in made_for("ta")]
    heads += [("Avg.", ASR[:2]), ("Avg.", ST[:2])]
    own = [(model, *head) for model in set(WRONG) - {against} for head in heads]
    tests = [paired(against, model, *some) for model, _, some in own]
    marks = expected_marks(tests, [some[0][2] for _, _, some in own])
    for (model, head, some), mark, test in zip(own, marks, tests, strict=True):
        cell = found[model][head, block(some[0][2])]
        assert cell.mark == mark
        assert cell.blocks == test.blocks == SPEAKERS * len(some)
        assert cell.p_value is not None
        assert cell.p_value >= test.p_value
    assert set(marks) >= {"", "†" if against == "pretrained" else "‡"}
    assert {cell.mark for cell in found[against].values()} == {""}


@pytest.mark.parametrize("speakers", [1, 5, 6, 9, 12])
def test_few_speakers_are_noted_and_fewer_bear_no_mark(tmp_path: Path, speakers: int) -> None:
    files = []
    for model, wrong in (("ta", 0.5), ("lors", 0.01)):
        rows = [
            replace(row, speaker=f"s{n % speakers}")
            for n, row in enumerate(hypotheses(model, ASR[0], wrong))
        ]
        files.append(write_results(tmp_path / f"{model}.json", [score(rows, SCORING)]))
    found = run(files, tmp_path / "out")
    cell = cells(found, "scores")["lors"]["ca", block("asr")]
    assert cell.mark == ("†" if speakers > 6 else "")  # twice 2 / 2**6, for cell and average
    assert cell.blocks == speakers
    assert [note.startswith(f"{speakers} speakers: intervals from under 10") for note in found.notes
            ] == [True] * (speakers < 10)  # fmt: skip
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"paired tests over {speakers} speakers." in text
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {score["blocks"] for score in stored["scores"] if score["language"] == "ca"} == {
        speakers
    }


def test_the_best_of_a_column_is_bold(files: list[Path], tmp_path: Path) -> None:
    found = cells(run(files, tmp_path / "out"), "scores")
    for task, best in (("asr", min), ("st", max)):
        for head in ("ca", "de", "Avg."):
            column = {model: row[head, block(task)] for model, row in found.items()}
            value = best(float(cell.text) for cell in column.values())
            assert [m for m, cell in column.items() if cell.best] == [
                m for m, cell in column.items() if float(cell.text) == value
            ]


def test_an_average_over_fewer_languages_is_not_the_best(files: list[Path], tmp_path: Path) -> None:
    one = [record("half", ASR[0], 0.01)]
    files.append(write_results(tmp_path / "half.json", one, {"half": finetune("ca_asr")}))
    found = cells(run(files, tmp_path / "out"), "scores")
    assert found["half"]["ca", block("asr")].best
    assert not found["half"]["Avg.", block("asr")].best


def test_differences_are_averages_with_errors_in_squares(files: list[Path], tmp_path: Path) -> None:
    found = cells(run(files, tmp_path / "out"), "differences")
    every, tasks = [], []
    for model in WRONG:
        for some in (ASR[:2], ST[:2]):
            for other in {"pretrained", "ta"} - {model}:
                every.append((model, other, some, paired(other, model, *some)))
                tasks.append(some[0][2])
    marks = expected_marks([test for *_, test in every], tasks)
    for (model, other, some, test), mark in zip(every, marks, strict=True):
        unit = 1 if some[0][2] == "st" else 100
        tests = [paired(other, model, cell) for cell in some]
        mean = unit * fmean(test.difference for test in tests)
        error = unit * math.sqrt(sum(test.interval.standard_error**2 for test in tests)) / 2
        cell = found[model][f"minus {other}", block(some[0][2])]
        assert cell.text == f"{mean:+.2f} ± {error:.2f}".replace("-", MINUS)
        assert cell.mark == mark
    assert "†" in marks


# --- what it bought -------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
def test_a_pruned_system_stands_beside_its_control(
    files: list[Path], tmp_path: Path, named: bool
) -> None:
    controls = {"lors": "ta"} if named else {}
    found = run(files, tmp_path / "out", controls=controls, against="pretrained" if named else None)
    control = "ta" if named else "ta_as_lors"
    row = cells(found, "controls")["lors"]
    difference = 100 * paired(control, "lors", *ASR[:2]).difference
    assert row["difference", block("asr")].text.startswith(
        f"{difference:+.2f} ±".replace("-", MINUS)
    )
    own = fmean(direct(control, cell) for cell in ASR[:2])
    assert row["control", block("asr")].text == f"{own:.2f}"
    assert row["control's lambda", ""].text == ("0.2" if named else "0.18")
    scores = table(found, "scores").rows
    place = [label for label, _, _ in scores].index("lors")
    assert scores[place + 1][:2] == (control, True)


def test_the_gain_kept_is_the_share_of_the_fine_tunes_gain(
    files: list[Path], tmp_path: Path
) -> None:
    drawn = run(files, tmp_path / "out")
    found = cells(drawn, "gain_asr")
    for cell in ASR[:2]:
        base, own = direct("pretrained", cell), direct("finetuned", cell)
        first = found["finetuned minus pretrained"][cell[1], block("asr")].text
        assert first.startswith(f"{own - base:+.2f} ± ".replace("-", MINUS))
        for model in ("ta", "lors"):
            share = (direct(model, cell) - base) / (own - base)
            shown = found[model][cell[1], block("asr")]
            assert shown.text == f"{100 * share:.0f} %"
            low, high = (float(text.replace(MINUS, "-")) for text in shown.beside.split(" to "))
            assert (low, high) == pytest.approx(
                share_by_jackknife(*(blocks(m, cell) for m in ("pretrained", "finetuned", model))),
                abs=3,
            )
    scores = [direct("ta", cell) for cell in ASR[:2]]
    assert found["ta"]["gap", block("asr")].text == f"{max(scores) - min(scores):.2f}"


def share_by_jackknife(base: Floats, finetuned: Floats, system: Floats) -> tuple[float, float]:
    """The 95 % interval of the gain kept, in percent, from the shares without each speaker."""

    def share(keep: list[int]) -> float:
        b, f, m = (side[keep].sum(axis=0) for side in (base, finetuned, system))
        return 100 * (m[0] - b[0]) / (f[0] - b[0])

    every = list(range(len(base)))
    left_out = [share([n for n in every if n != out]) for out in every]
    count = len(every)
    error = math.sqrt((count - 1) / count * sum((x - fmean(left_out)) ** 2 for x in left_out))
    reach = student.ppf(0.975, count - 1) * error
    return share(every) - reach, share(every) + reach


def test_a_gain_of_less_than_two_standard_errors_is_refused(tmp_path: Path) -> None:
    files, seen = [], set()
    for model, wrong in (("pretrained", 0.3), ("ta", 0.2)):
        files.append(write_results(tmp_path / f"{model}.json", [record(model, ASR[0], wrong)]))
    for wrong in (0.29, 0.28, 0.27, 0.26, 0.25, 0.24, 0.22, 0.2):
        rows = [record("finetuned", ASR[0], wrong)]
        tuned = write_results(tmp_path / "finetuned.json", rows, {"finetuned": finetune("ca_asr")})
        found = cells(run([*files, tuned], tmp_path / "out", force=True), "gain_asr")
        metric = WER_METRIC
        test = compare(
            [(blocks("pretrained", ASR[0], 0.3), blocks("finetuned", ASR[0], wrong))], metric
        )
        clear = test.difference < -2 * test.interval.standard_error
        assert (found["ta"]["ca", block("asr")].text == "refused") == (not clear)
        seen.add(clear)
    assert seen == {True, False}


@pytest.mark.parametrize("wrong", [0.30, 0.5])
def test_a_denominator_near_zero_or_negative_is_refused(
    files: list[Path], tmp_path: Path, wrong: float
) -> None:
    # the fine-tune's errors are the base's (no gain at all), or more (a loss)
    name = "pretrained" if wrong == 0.3 else "finetuned"
    rows = hypotheses(name, ASR[0], wrong)
    stored = json.loads((tmp_path / "ft_ca_asr.json").read_text())
    stored["records"][0]["rows"] = [
        {"id": r.id, "speaker": r.speaker, "seconds": r.seconds, "reference": r.reference,
         "hypothesis": r.hypothesis} for r in rows
    ]  # fmt: skip
    (tmp_path / "ft_ca_asr.json").write_text(json.dumps(stored))
    found = cells(run(files, tmp_path / "out"), "gain_asr")
    assert found["ta"]["ca", block("asr")].text == "refused"
    assert found["ta"]["de", block("asr")].text.endswith("%")


def test_languages_without_a_delta_are_what_may_be_forgotten(
    files: list[Path], tmp_path: Path
) -> None:
    found = run(files, tmp_path / "out")
    kept = cells(found, "retention")
    assert list(kept) == ["pretrained", "ta", "lors", "ta_as_lors"]
    assert table(found, "retention").heads == (
        ("fr", block("asr")), ("change", block("asr")), ("fr", block("st")), ("change", block("st")),
    )  # fmt: skip
    for cell in (ASR[2], ST[2]):
        shown = kept["lors"]["fr", block(cell[2])]
        assert shown.text == f"{direct('lors', cell):.2f}"
        assert shown.p_value is not None
        assert shown.p_value >= paired("pretrained", "lors", cell).p_value
        assert bool(shown.mark) == (shown.p_value < 0.05)
    assert {mark for row in kept.values() for mark in (cell.mark for cell in row.values())} == {
        "",
        "†",
    }
    assert "fr" not in [head for head, _ in table(found, "scores").heads]


def test_a_held_out_set_is_one_whatever_its_language(files: list[Path], tmp_path: Path) -> None:
    found = run(files, tmp_path / "out", held_out=["de"])
    heads = [head for head, _ in table(found, "retention").heads]
    assert heads == ["de", "fr", "change"] * 2
    assert "de" not in [head for head, _ in table(found, "scores").heads]


def test_old_results_without_origins_are_read(files: list[Path], tmp_path: Path) -> None:
    for path in files:
        stored = json.loads(path.read_text())
        del stored["models"]
        path.write_text(json.dumps(stored))
    found = cells(run(files, tmp_path / "out"), "scores")
    assert found["lors"]["fr", block("asr")].text == f"{direct('lors', ASR[2]):.2f}"
    assert found["finetuned"]["fr", block("asr")].text == NONE


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    """Three runs of two systems, and a base of one."""
    found = [write_results(tmp_path / "base.json", [record("base", c, 0.3) for c in ASR[:2]],
                           {"base": {}})]  # fmt: skip
    for seed in range(3):
        records, made = [], {}
        for system, wrong in (("ta", 0.2 + 0.01 * seed), ("lors", 0.1)):
            name = f"{system}:seed{seed}"
            records += [record(name, cell, wrong) for cell in ASR[:2]]
            made[name] = merge(system, delta("ca_asr"), delta("de_asr"))
        found.append(write_results(tmp_path / f"seed{seed}.json", records, made))
    return found


def test_runs_are_averaged_and_their_spread_is_shown(seeds: list[Path], tmp_path: Path) -> None:
    found = cells(run(seeds, tmp_path / "out"), "scores")
    assert list(found) == ["base", "ta", "lors"]
    each = [[record(f"ta:seed{seed}", cell, 0.2 + 0.01 * seed).score for cell in ASR[:2]]
            for seed in range(3)]  # fmt: skip
    means = [fmean(scores) for scores in each]
    row = found["ta"]
    assert row["ca", block("asr")].text == f"{fmean(scores[0] for scores in each):.2f}"
    assert row["Avg.", block("asr")].text == f"{fmean(means):.2f}"
    assert row["runs ±", block("asr")].text == f"{stdev(means):.2f} (3)"
    assert found["base"]["runs ±", block("asr")].text == ""


def test_runs_are_paired_by_their_names_and_marked_if_every_one_is(
    seeds: list[Path], tmp_path: Path
) -> None:
    out = run(seeds, tmp_path / "out")
    found = cells(out, "scores")
    tests = []
    for seed in range(3):
        pair = (
            blocks(f"ta:seed{seed}", ASR[0], 0.2 + 0.01 * seed),
            blocks(f"lors:seed{seed}", ASR[0], 0.1),
        )
        tests.append(compare([pair], WER_METRIC))
    shown = found["lors"]["ca", block("asr")]
    assert shown.p_value is not None
    assert shown.p_value >= max(t.p_value for t in tests)
    assert (shown.mark == "†") == (shown.p_value < 0.05)
    stored = next(
        s for s in out.document["scores"] if (s["system"], s["language"]) == ("lors", "ca")
    )
    assert stored["against"]["value"] == pytest.approx(100 * fmean(t.difference for t in tests))
    assert stored["against"]["runs"] == 3
    assert stored["against"]["p_value"] == max(t.p_value for t in tests)
    # the base has but one run, which is compared with all three
    base = next(s for s in out.document["scores"] if (s["system"], s["language"]) == ("base", "ca"))
    assert base["against"]["runs"] == 3


# --- figures --------------------------------------------------------------------------------------


def combinations(tmp_path: Path) -> list[Path]:
    """Merges of two and three languages, each scored on its own; their data differ in hours."""
    hours = {"ca": 3.5, "de": 5.0, "fr": 7.0}
    found = [write_results(tmp_path / "pretrained.json",
                           [record("pretrained", cell, 0.3) for cell in ASR], {"pretrained": {}})]  # fmt: skip
    for cell in ASR:
        one = record("finetuned", cell, 0.2)
        made = {"finetuned": finetune(f"{cell[1]}_asr")}
        found.append(write_results(tmp_path / f"ft_{cell[1]}.json", [one], made))
    for chosen in (ASR[:2], ASR[1:], [ASR[0], ASR[2]], ASR):
        name = "lors:" + "+".join(cell[1] for cell in chosen)
        records = [record(name, cell, 0.1 * len(chosen)) for cell in chosen]
        deltas = (delta(f"{cell[1]}_asr", hours=hours[cell[1]]) for cell in chosen)
        made = {name: merge("lors", *deltas)}
        found.append(write_results(tmp_path / f"{name[5:]}.json", records, made))
    return found


def test_the_figure_over_languages_averages_all_combinations(tmp_path: Path) -> None:
    paths = combinations(tmp_path)
    found = run(paths, tmp_path / "out", runs=True)
    assert {"figures/languages.svg", "figures/languages.png"} <= set(found.files)
    pairs = []
    for chosen in (ASR[:2], ASR[1:], [ASR[0], ASR[2]]):
        name = "lors:" + "+".join(cell[1] for cell in chosen)
        pairs.append(fmean(record(name, cell, 0.2).score for cell in chosen))
    three = fmean(record("lors:ca+de+fr", cell, 0.1 * 3).score for cell in ASR)
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"lors: {fmean(pairs):.2f} at 2, {three:.2f} at 3" in text
    rows = cells(found, "scores")
    assert {"lors (languages 2)", "lors (languages 3)"} <= set(rows)
    assert rows["lors (languages 2)"]["Avg.", block("asr")].text == f"{fmean(pairs):.2f}"


def test_the_figure_over_hours_joins_data_of_about_one_size(tmp_path: Path) -> None:
    paths = []
    for hours, exact in ((1.0, (0.97, 1.04)), (5.0, (4.8, 5.3))):
        for cell, own in zip(ASR[:2], exact, strict=True):
            name = f"finetuned:{hours:g}"
            made = {name: finetune(f"{cell[1]}_asr", hours=own)}
            records = [record(name, cell, 0.2 / hours)]
            paths.append(write_results(tmp_path / f"{cell[1]}{hours}.json", records, made))
    found = run(paths, tmp_path / "out", base="finetuned", runs=True)
    assert list(cells(found, "scores")) == ["finetuned (hours 1)", "finetuned (hours 5)"]
    assert "figures/hours.png" not in found.files  # the base has no place on the axis
    found = run(paths, tmp_path / "again", runs=True)
    assert "figures/hours.png" in found.files


@pytest.mark.parametrize("kind", ["svp", "mp"])
def test_the_figure_over_ratios_has_the_controls_too(tmp_path: Path, kind: str) -> None:
    paths = []
    for ratio in (0.05, 0.2):
        for system, wrong in (("one", ratio), ("ta_as_one", 0.3)):
            name = f"{system}:{ratio}"
            pruned = {kind: ratio} if system == "one" else {"scale": ratio}
            made = {name: merge(kind, delta("ca_asr", **pruned))}
            path = tmp_path / f"{system}{ratio}.json"
            paths.append(write_results(path, [record(name, ASR[0], wrong)], made))
    found = run(paths, tmp_path / "out", runs=True)
    assert "figures/retain.svg" in found.files
    text = (tmp_path / "out" / "report.md").read_text()
    for system, wrong in (("one", None), ("ta\\_as\\_one", 0.3)):
        points = [
            record(f"{system.replace(chr(92), '')}:{ratio}", ASR[0], wrong or ratio).score
            for ratio in (0.05, 0.2)
        ]
        assert f"{system}: {points[0]:.2f} at 0.05, {points[1]:.2f} at 0.2" in text


def test_pictures_are_what_they_say(tmp_path: Path) -> None:
    run(combinations(tmp_path), tmp_path / "out", runs=True)
    folder = tmp_path / "out" / "figures"
    assert (folder / "languages.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (folder / "languages.svg").read_bytes()[:1000]


def test_without_matplotlib_the_figures_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = combinations(tmp_path)
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    found = run(paths, tmp_path / "out", runs=True)
    assert len(found.warnings) == 1
    assert "pip install 'lorsmerge[plot]'" in found.warnings[0]
    assert not (tmp_path / "out" / "figures").exists()
    assert (tmp_path / "out" / "report.html").is_file()


# --- pages ----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that elements nest, and collects what an element refers to."""

    VOID: ClassVar = {"meta", "img", "br", "link"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [value or "" for key, value in attrs if key in ("href", "src")]
        self.ids += [found["id"] or ""] if "id" in found else []
        self.images += [found] if tag == "img" else []
        assert tag not in ("script", "link", "iframe")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    run(combinations(tmp_path), tmp_path / "out", runs=True)
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.images
    assert all(image["alt"] for image in page.images)
    for link in page.links:
        assert link.startswith("data:image/svg+xml;base64,") or link[1:] in page.ids
    assert len(set(page.ids)) == len(page.ids)
    assert not re.search(r"https?://|@import|url\(", text)


def test_names_are_spelled_out_in_every_format(tmp_path: Path) -> None:
    name = "50%_of <b>&\\~^{x}$#|*"
    path = write_results(tmp_path / "r.json", [record(name, ASR[0], 0.1)])
    run([path], tmp_path / "out")
    assert "50%_of &lt;b&gt;&amp;\\~^{x}$#|*" in (tmp_path / "out" / "report.html").read_text()
    tex = (tmp_path / "out" / "tables.tex").read_text()
    assert (
        r"50\%\_of $<$b$>$\&\textbackslash{}\textasciitilde{}\textasciicircum{}\{x\}\$\#|*" in tex
    )
    assert r"50%\_of &lt;b>&\\~^{x}$#\|\*" in (tmp_path / "out" / "report.md").read_text()


def test_latex_rows_have_as_many_cells_as_columns(files: list[Path], tmp_path: Path) -> None:
    run(files, tmp_path / "out")
    tex = (tmp_path / "out" / "tables.tex").read_text()
    for body in re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", tex, re.DOTALL):
        columns = len(re.match(r"\{l(r*)\}", body)[1])  # type: ignore[index]
        for line in body.splitlines():
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert len(re.findall(r"(?<!\\)&", line)) == columns
    assert tex.count("{") == tex.count("}")
    assert "†" not in tex


def test_the_paper_s_numbers_stand_beside_the_measured_ones(
    files: list[Path], tmp_path: Path
) -> None:
    paper = tmp_path / "paper.toml"
    paper.write_text(
        'about = "the paper"\n[names]\nlors = "LoRS-Merging"\n[asr]\nlors = {ca = 19.0, average = 18.85}\n'
    )
    found = cells(run(files, tmp_path / "out", paper=paper), "scores")
    assert found["LoRS-Merging"]["ca", block("asr")].beside == "19.0"
    assert found["LoRS-Merging"]["Avg.", block("asr")].beside == "18.85"
    assert found["ta"]["ca", block("asr")].beside == ""
    assert "(18.85)" in (tmp_path / "out" / "report.md").read_text()


# --- bad input ------------------------------------------------------------------------------------


def test_files_that_are_no_results_are_all_named(files: list[Path], tmp_path: Path) -> None:
    whole = files[0].read_bytes()
    (tmp_path / "cut.json").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other.json").write_text('{"deltas": []}')
    stored = json.loads(whole)
    del reported(stored["records"][0])["score"]
    (tmp_path / "record.json").write_text(json.dumps(stored))
    names = ["cut.json", "other.json", "record.json", "missing.json"]
    with pytest.raises(LorsmergeError) as caught:
        run([*files, *(tmp_path / name for name in names)], tmp_path / "out")
    assert all(name in str(caught.value) for name in names)
    assert not (tmp_path / "out").exists()


def test_no_scores_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no scores"):
        run([write_results(tmp_path / "empty.json", [])], tmp_path / "out")


def test_a_model_scored_twice_with_other_answers_is_an_error(
    files: list[Path], tmp_path: Path
) -> None:
    other = write_results(tmp_path / "again.json", [record("ta", ASR[0], 0.9)])
    with pytest.raises(
        Mismatch, match=r"ta\.json and in .*again\.json with other answers.*ta:seed0"
    ):
        run([*files, other], tmp_path / "out")
    same = write_results(tmp_path / "again.json", [record("ta", ASR[0], WRONG["ta"]["asr"])])
    run([*files, files[1], same], tmp_path / "out")


def test_other_weights_with_the_same_answers_are_another_model(tmp_path: Path) -> None:
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in paths:
        write_results(path, [record("ta", ASR[0], 0.1)], {"ta": {"kind": "merge"}})
    run(paths, tmp_path / "same")
    document = json.loads(paths[1].read_text())
    document["models"]["ta"]["identity"] = "other"
    paths[1].write_text(json.dumps(document))
    with pytest.raises(Mismatch, match=r"one\.json and in .*two\.json by different weights"):
        run(paths, tmp_path / "out")


def test_rescored_files_that_were_decoded_otherwise_are_noted(tmp_path: Path) -> None:
    paths = [tmp_path / f"beam{n}.json" for n in (1, 5)]
    for path, name in zip(paths, "ab", strict=True):
        write_results(path, [record(name, ASR[0], 0.1)])
        document = json.loads(path.read_text())
        del document["settings"]["decoding"]
        document["settings"]["decoded"] = {name: f"{path.stem}|float32"}
        path.write_text(json.dumps(document))
    found = run(paths, tmp_path / "out")
    assert "decoding is beam1|float32 (eval --score-only) in" in " ".join(found.notes)


@pytest.mark.parametrize("count", [29, 31])
def test_systems_on_other_utterances_are_an_error(
    files: list[Path], tmp_path: Path, count: int
) -> None:
    other = write_results(tmp_path / "other.json", [record("x", ASR[0], 0.1, count=count)])
    with pytest.raises(
        Mismatch, match=f"'x' on ca ca asr .{count}.*not scored on the same utterances"
    ):
        run([*files, other], tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beam": 20}, "Mixed settings: beam is 1 in "),
        ({"normalisation": "raw"}, "scored with normalisation raw, and rescored here with basic"),
        ({"version": "0.2.0"}, "lorsmerge is 0.1.0 in "),
    ],
)
def test_mixed_settings_are_noted_in_every_format(
    files: list[Path], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    other = write_results(tmp_path / "other.json", [record("x", ASR[0], 0.1)], **changes)
    assert run(files, tmp_path / "clean").notes == ()
    found = run([*files, other], tmp_path / "out")
    assert len(found.notes) == 1
    assert said in found.notes[0]
    assert "other.json" in found.notes[0]
    for name in ("report.html", "report.json"):
        assert said in (tmp_path / "out" / name).read_text()


def test_cut_and_looping_hypotheses_are_noted(files: list[Path], tmp_path: Path) -> None:
    scored = record("x", ASR[0], 0.1)
    rows = [replace(row, cut=n < 3) for n, row in enumerate(scored.rows)]
    rows[0] = replace(rows[0], hypothesis="the red house " * 20)
    other = write_results(tmp_path / "other.json", [score(rows, SCORING)])
    said = f"Of x's {len(rows)} hypotheses 3 were ended by the limit of tokens, 1 repeat themselves, and 1 have words 5 times in a row or more."
    assert said in run([*files, other], tmp_path / "out").notes
    assert said in (tmp_path / "out" / "report.md").read_text()


def test_runs_of_one_model_are_noted(files: list[Path], tmp_path: Path) -> None:
    paths = []
    for seed in range(3):
        name = f"x:seed{seed}"
        paths.append(
            write_results(tmp_path / f"{seed}.json", [record(name, ASR[0], 0.1)], {name: {}})
        )
    assert run([*files, *paths], tmp_path / "out").notes == ()
    text = paths[1].read_text().replace("id of x:seed1", "id of x:seed0")
    paths[1].write_text(text)
    (note,) = run([*files, *paths], tmp_path / "again").notes
    assert note.startswith("Runs seed0, seed1 of x have the same weights")


@pytest.mark.parametrize("option", ["base", "finetuned", "against"])
def test_a_system_that_is_not_there(files: list[Path], tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageFault, match=f"--{option}: no result is of 'nobody'.*pretrained"):
        run(files, tmp_path / "out", **{option: "nobody"})


def test_a_control_or_data_set_that_is_not_there(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="--control: no result is of 'nobody'"):
        run(files, tmp_path / "out", controls={"lors": "nobody"})
    with pytest.raises(UsageFault, match="--held-out: no result is on 'nothing'"):
        run(files, tmp_path / "out", held_out=["nothing"])


@pytest.mark.parametrize("text", ["[asr]\nta = 3", "[asr.ta]\nca = 'x'", "[wer.ta]\nca = 1", "= 3"])
def test_published_numbers_that_are_none(files: list[Path], tmp_path: Path, text: str) -> None:
    (tmp_path / "paper.toml").write_text(text)
    with pytest.raises(UnreadableFile, match=r"paper\.toml holds no published numbers"):
        run(files, tmp_path / "out", paper=tmp_path / "paper.toml")


def test_an_output_that_exists_or_holds_an_input_is_refused(
    files: list[Path], tmp_path: Path
) -> None:
    run(files, tmp_path / "out")
    with pytest.raises(OutputFault, match="exists"):
        run(files, tmp_path / "out")
    with pytest.raises(OutputFault, match="holds the input"):
        run(files, tmp_path, force=True)
    run(combinations(tmp_path), tmp_path / "out", force=True, runs=True)
    assert (tmp_path / "out" / "figures" / "languages.svg").is_file()
    run(files, tmp_path / "out", force=True)
    assert not (
        tmp_path / "out" / "figures" / "languages.svg"
    ).exists()  # stale pictures of another report
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(OutputFault, match=r"mine\.txt"):
        run(files, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
