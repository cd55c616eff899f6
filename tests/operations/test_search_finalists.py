"""Which finalist is written, and when a trial is stopped: noise is simulated, the truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from search_calls import Formula, formula, plan, quick_disk, run
from speech_models import make_deltas, make_test_set, make_whisper

from lorsmerge_cli.core.methods import PAPER_SCALE
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.operations.search.files import document, trials_csv, write_report
from lorsmerge_cli.operations.search.finalists import choose, complexity, judge, scaled, unpruned
from lorsmerge_cli.operations.search.report import Finalist, TrialRow
from lorsmerge_cli.operations.search.scores import Goal, Speakers, Statistics, small_sets
from lorsmerge_cli.recipe.recipe import DeltaEntry, Recipe, load_recipe

__all__ = ["formula", "quick_disk"]
pytestmark = pytest.mark.usefixtures("quick_disk")

WER = Goal(("asr",), "greedy")
SPEAKERS: Speakers = {"ca_asr": [f"s{n % 20}" for n in range(200)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca.delta, de.delta and data/test.jsonl. Read only."""
    folder = tmp_path_factory.mktemp("finalists")
    base = make_whisper(folder / "base")
    made = {name: {"task": "asr", "language": name} for name in ("ca", "de")}
    make_deltas(base, made, step=0.5)
    make_test_set(folder / "data", count=20)
    return folder


def recipe(*settings: tuple[float | None, float | None, float]) -> Recipe:
    return Recipe(
        "base", tuple(DeltaEntry(f"{n}.delta", *values) for n, values in enumerate(settings))
    )


def said(rate: float, seed: int) -> Statistics:
    """200 utterances of 10 words with a share of errors."""
    errors = np.random.default_rng(seed).binomial(10, rate, 200)
    return {"ca_asr": np.stack([errors, np.full(200, 10)], axis=1).astype(np.float64)}


def worse(statistics: Statistics, utterances: int) -> Statistics:
    """The same answers, with an error more in the first utterances."""
    table = statistics["ca_asr"].copy()
    table[:utterances, 0] += 1
    return {"ca_asr": table}


def row(number: int) -> TrialRow:
    return TrialRow(number, "" if number else "control", False, 1.0, {"scale": 0.1}, (), {})


# --- simplicity -----------------------------------------------------------------------------------


def test_simplicity_is_parts_then_shared_settings_then_what_is_kept() -> None:
    simplest_first = [
        recipe((None, None, 0.2), (None, None, 0.2)),
        recipe((None, None, 0.2), (None, None, 0.3)),
        recipe((0.05, None, 0.2), (0.05, None, 0.2)),
        recipe((None, 0.2, 0.2), (None, 0.2, 0.2)),
        recipe((None, 0.1, 0.2), (None, 0.2, 0.2)),
        recipe((0.01, 0.1, 0.2), (0.01, 0.1, 0.2)),
        recipe((0.05, 0.1, 0.2), (0.05, 0.1, 0.2)),
        recipe((0.01, 0.1, 0.2), (0.02, 0.1, 0.2)),
    ]
    found = [complexity(made) for made in simplest_first]
    assert found == sorted(found)
    assert len(set(found)) == len(found)


def test_what_has_to_be_beaten_is_unpruned() -> None:
    point = {"svp[1]": 0.1, "svp[2]": None, "mp": 0.2, "scale[1]": 0.2, "scale[2]": 0.4}
    assert scaled(unpruned(point), 0.51239) == {
        "svp[1]": None, "svp[2]": None, "mp": None, "scale[1]": 0.1025, "scale[2]": 0.205,
    }  # fmt: skip
    assert unpruned({"scale": PAPER_SCALE}) == {"scale": PAPER_SCALE}


# --- the one-standard-error rule ------------------------------------------------------------------


def judged(*found: tuple[Recipe, Statistics]) -> tuple[Finalist, ...]:
    recipes = [(row(n), made) for n, (made, _) in enumerate(found, 1)]
    return judge(WER, recipes, [statistics for _, statistics in found], SPEAKERS)


LORS = recipe((0.05, 0.2, 0.2))
MP = recipe((None, 0.2, 0.2))
TA = recipe((None, None, 0.2))


def test_the_simplest_of_those_within_a_standard_error_is_written() -> None:
    best = said(0.2, 0)
    # one error more is exactly one standard error behind (a speaker's, of one alone)
    close, far = worse(best, 1), worse(best, 12)
    found = judged((LORS, best), (TA, far), (MP, close))
    assert [finalist.trial.number for finalist in found] == [1, 3, 2]
    assert [finalist.as_good for finalist in found] == [True, True, False]
    assert choose(found, best=False).trial.number == 3
    assert choose(found, best=True).trial.number == 1


def test_a_difference_is_the_paired_one_by_speaker() -> None:
    one, other = said(0.2, 1), said(0.22, 2)
    (_, second) = judged((LORS, one), (TA, other))
    sums = [
        np.array([s["ca_asr"][n::20].sum(axis=0) for n in range(20)]) for s in (one, other)
    ]  # fmt: skip
    if second.trial.number == 1:
        sums.reverse()
    changes = (sums[1] - sums[0])[:, 0] / 100
    (difference,) = second.differences
    assert difference.difference == pytest.approx(100 * changes.mean())
    assert difference.interval.standard_error == pytest.approx(
        100 * changes.std(ddof=1) / np.sqrt(20)
    )
    assert difference.blocks == 20


def test_what_is_equally_simple_is_chosen_by_its_score() -> None:
    best = said(0.2, 0)
    found = judged((LORS, best), (TA, worse(best, 1)), (TA, best))
    assert choose(found, best=False).trial.number == 3


def test_the_best_trial_is_no_control() -> None:
    best = said(0.2, 0)
    rows = [(row(0), TA), (row(4), LORS)]
    found = judge(WER, rows, [best, worse(best, 40)], SPEAKERS)
    assert choose(found, best=False).trial.name == "control"
    assert choose(found, best=True).trial.name == "trial 4"


def test_one_speaker_tells_nothing_so_only_what_is_no_worse_counts() -> None:
    best = said(0.2, 0)
    rows = [(row(1), LORS), (row(2), TA), (row(3), MP)]
    found = judge(WER, rows, [best, worse(best, 1), best], {"ca_asr": ["s"] * 200})
    assert [finalist.as_good for finalist in found] == [True, True, False]


def test_luck_is_not_written_as_pruning() -> None:
    """Of equally good recipes the best looks better than task arithmetic, which is written mostly."""
    chosen = []
    for seed in range(60):
        found = judged((TA, said(0.2, 100 * seed)),
                       *((LORS, said(0.2, 100 * seed + n)) for n in range(1, 4)))  # fmt: skip
        chosen.append(choose(found, best=False).complexity[0] == 0)
        chosen_best = choose(found, best=True)
        assert chosen_best is found[0]
    assert np.mean(chosen) > 0.5  # of four, the best is task arithmetic in a quarter


def test_both_objectives_have_to_be_as_good() -> None:
    goal = Goal(("asr", "st"), "greedy")

    def both(errors: int, missed: int) -> Statistics:
        bleu = np.array([[10, 10, 8, 6, 5, 4, 10, 9, 8, 7]] * 200, dtype=np.float64)
        bleu[:missed, 2:6] -= 1
        return worse(said(0.2, 0), errors) | {"ca_st": bleu}

    speakers = SPEAKERS | {"ca_st": SPEAKERS["ca_asr"]}
    rows = [(row(n), made) for n, made in enumerate((LORS, TA, TA, MP), 1)]
    statistics = [both(0, 0), both(1, 60), both(60, 1), both(1, 1)]
    found = {f.trial.number: f for f in judge(goal, rows, statistics, speakers)}
    assert {n: f.as_good for n, f in found.items()} == {1: True, 2: False, 3: False, 4: True}
    assert len(found[2].differences) == 2


# --- in a search ----------------------------------------------------------------------------------


def test_task_arithmetic_and_the_control_are_among_the_finalists(
    folder: Path, tmp_path: Path, formula: Formula
) -> None:
    report = run(folder, tmp_path / "s.db", objective="wer", trials=6, finalists=2)
    names = {found.trial.name.split(" of")[0]: found.trial for found in report.finalists}
    trials = [found.trial for found in report.finalists if found.trial.number]
    assert len(trials) == 2
    assert len(report.finalists) == 4
    best = trials[0]
    plain, control = names["task arithmetic"], names["control"]
    assert plain.point == {"svp": None, "mp": None, "scale": best.point["scale"]}
    # the norm of the formula's pruned steps is half that of the unpruned ones
    assert control.point["scale"] == pytest.approx(0.5 * best.point["scale"], rel=1e-3)
    found = document(report)
    assert found["chosen"] == report.chosen.trial.name
    assert [finalist["from_the_best"][0]["blocks"] for finalist in found["finalists"]] == [12] * 4


def test_a_space_without_pruning_has_nothing_more_to_beat(
    folder: Path, tmp_path: Path, formula: Formula
) -> None:
    texts = {"scale": "0.1:0.9"}
    report = run(folder, tmp_path / "s.db", texts=texts, objective="wer", trials=4, finalists=2)
    assert [found.trial.number > 0 for found in report.finalists] == [True, True]


def test_best_writes_the_best_trial(folder: Path, tmp_path: Path, formula: Formula) -> None:
    # every lambda is as good as another where nothing is merged of either delta
    formula.score = constant  # type: ignore[method-assign]
    for best in (False, True):
        settings = {"objective": "wer", "trials": 5, "best": best}
        report = run(folder, tmp_path / f"{best}.db", **settings)
        (path,) = write_report(report)
        written = load_recipe(path).resolved()
        assert (written.method == "ta") == (not best)


def constant(rows: Any) -> Statistics:
    found: dict[str, list[list[float]]] = {}
    for utterance in rows:
        found.setdefault(f"{utterance.language}_{utterance.task}", []).append([2.0, 10.0])
    return {key: np.array(table) for key, table in found.items()}


def noisy(formula: Formula, spread: float) -> None:
    """Have each utterance's score differ, as the recipe has it."""
    real = type(formula).score

    def score(rows: Any) -> Statistics:
        found = real(formula, rows)
        settings = [(entry.svp, entry.mp, entry.scale) for entry in formula.recipe.deltas]
        random = np.random.default_rng(crc32(repr(settings).encode()))
        for table in found.values():
            table[:, 0] += spread * random.standard_normal(len(table))
        return found

    formula.score = score  # type: ignore[method-assign]


def test_a_trial_is_stopped_by_what_is_clear_and_not_by_noise(
    folder: Path, tmp_path: Path, formula: Formula
) -> None:
    settings = {"objective": "wer", "trials": 12, "finalists": 1}
    clear = run(folder, tmp_path / "clear.db", **settings)
    noisy(formula, 3000.0)
    noise = run(folder, tmp_path / "noise.db", **settings)
    assert sum(found.stopped for found in clear.trials) >= 3
    assert sum(found.stopped for found in noise.trials) <= 2
    best = min(found.values[0] for found in clear.trials if not found.stopped)
    for found in clear.trials:
        assert not found.stopped or found.values[0] > best


def test_two_objectives_stop_what_is_behind_in_both(
    folder: Path, tmp_path: Path, formula: Formula
) -> None:
    report = run(folder, tmp_path / "s.db", trials=14, finalists=1)
    stopped = [found for found in report.trials if found.stopped]
    whole = [found for found in report.trials if not found.stopped]
    assert stopped
    for found in stopped:
        assert found.part < 1
        assert len(found.values) == 2
        assert any(other.values[0] < found.values[0] and other.values[1] > found.values[1]
                   for other in whole)  # fmt: skip
    again = run(folder, tmp_path / "s.db", trials=14, finalists=1)
    assert again.trials == report.trials


def test_a_small_dev_set_is_a_warning() -> None:
    rows = [
        Utterance(f"u{n}", AudioFile(Path("x")), "", "ca", "asr", speaker=f"s{n % 20}")
        for n in range(200)
    ]
    assert small_sets(("asr",), rows) == []
    (few,) = small_sets(("asr",), [replace(r, speaker=f"s{n % 9}") for n, r in enumerate(rows)])
    assert few.startswith("The dev set is small for asr: 200 utterances, of 9 speakers")
    assert len(small_sets(("asr",), rows[:99])) == 1
    assert small_sets(("asr",), [replace(r, speaker=None) for r in rows]) == []


def test_a_partial_score_is_said_to_be_one(folder: Path, tmp_path: Path, formula: Formula) -> None:
    report = run(folder, tmp_path / "s.db", objective="wer", trials=12, finalists=1)
    lines = [line.split(",") for line in trials_csv(report).splitlines()]
    whole, part = lines[0].index("WER (greedy)"), lines[0].index("WER (greedy) of the part")
    for line, found in zip(lines[1:], report.trials, strict=True):
        assert (line[whole] == "") == found.stopped
        assert (line[part] == "") == (not found.stopped)
        assert float(line[part] or line[whole]) == found.values[0]
    assert any(found.stopped for found in report.trials)


def test_a_plan_warns_of_its_small_dev_set(folder: Path, tmp_path: Path) -> None:
    found = plan(folder, tmp_path / "s.db").warnings
    assert [text.split(":")[0] for text in found] == [
        "The dev set is small for asr", "The dev set is small for st",
    ]  # fmt: skip
