"""`report` on results that lack something: languages, tasks, runs, or a number."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
from report_calls import cells, run
from results_files import delta, finetune, merge, record, write_results

from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.operations.report_tables import NONE

LANGUAGES = ("ca", "de", "fr")
ASR = [(name, name, "asr") for name in LANGUAGES]
ST = [(name, name, "st") for name in LANGUAGES]
DELTAS = [delta(f"{name}_{task}") for name in LANGUAGES for task in ("asr", "st")]
TA, LORS = merge("ta", *DELTAS), merge("lors", *(d | {"svp": 0.1, "mp": 0.2} for d in DELTAS))


def results(folder: Path, name: str, made: dict, scored: dict[tuple[str, str, str], float]) -> Path:
    """A file of one model's scores: data set, language and task -> share of wrong words."""
    path = folder / f"{name.replace(':', '_')}_{len(list(folder.iterdir()))}.json"
    return write_results(
        path, [record(name, c, wrong) for c, wrong in scored.items()], {name: made}
    )


def all_of(cells: list[tuple[str, str, str]], wrong: float) -> dict[tuple[str, str, str], float]:
    return dict.fromkeys(cells, wrong)


def base(folder: Path, *more: tuple[str, str, str]) -> Path:
    return results(folder, "pretrained", {}, all_of([*ASR, *more], 0.3))


def test_gain_kept_on_average_needs_a_fine_tune_of_every_language(tmp_path: Path) -> None:
    files = [base(tmp_path), results(tmp_path, "ta", TA, all_of(ASR, 0.2))]
    files += [results(tmp_path, "finetuned", finetune(f"{c[1]}_asr"), {c: 0.1}) for c in ASR[:2]]
    found = cells(run(files, tmp_path / "out"), "gain_asr")["ta"]
    kept = [found[name, "WER % ↓"].text for name in (*LANGUAGES, "Avg.")]
    assert [text.endswith("%") for text in kept] == [True, True, False, False]
    assert kept[2:] == [NONE, NONE]


def test_gain_kept_is_of_the_runs_that_have_fine_tunes(tmp_path: Path) -> None:
    files = [base(tmp_path), results(tmp_path, "ta:seed0", TA, all_of(ASR, 0.2))]
    files += [results(tmp_path, "finetuned:seed0", finetune(f"{c[1]}_asr"), {c: 0.1}) for c in ASR]
    one = cells(run(files, tmp_path / "one"), "gain_asr")["ta"]
    files.append(results(tmp_path, "ta:seed1", TA, all_of(ASR, 0.02)))
    assert (
        cells(run(files, tmp_path / "two"), "gain_asr")["ta"]["Avg.", "WER % ↓"]
        == (one["Avg.", "WER % ↓"])
    )


def test_a_control_is_compared_on_what_both_were_scored_on(tmp_path: Path) -> None:
    files = [
        base(tmp_path), results(tmp_path, "lors", LORS, all_of(ASR, 0.2)),
        results(tmp_path, "ta_as_lors", TA, {ASR[1]: 0.1}),
    ]  # fmt: skip
    found = cells(run(files, tmp_path / "out"), "controls")["lors"]
    pruned, control, difference = (
        found[head, "WER % ↓"].text for head in ("pruned", "control", "difference")
    )
    assert float(pruned) == pytest.approx(record("lors", ASR[1], 0.2).score, abs=0.005)
    assert difference.startswith(f"{float(pruned) - float(control):+.2f}")


def test_a_run_that_lacks_languages_marks_the_average_of_its_row(tmp_path: Path) -> None:
    files = [
        base(tmp_path), results(tmp_path, "lors:seed0", LORS, all_of(ASR, 0.2)),
        results(tmp_path, "lors:seed1", LORS, {ASR[0]: 0.01}),
    ]  # fmt: skip
    found = run(files, tmp_path / "out")
    average = cells(found, "scores")["lors"]["Avg.", "WER % ↓"]
    assert average.mark == "*"
    assert not average.best


def test_a_seed_that_lacks_fine_tunes_marks_the_average_of_its_row(tmp_path: Path) -> None:
    files = [base(tmp_path), results(tmp_path, "ta", TA, all_of(ASR, 0.2))]
    for seed, scored in ((0, ASR), (1, ASR[:1])):
        files += [
            results(tmp_path, f"finetuned:seed{seed}", finetune(f"{c[1]}_asr"), {c: 0.1})
            for c in scored
        ]
        for path in files[2:]:  # each is a model of its own
            path.write_text(path.read_text().replace('"id of', f'"{path.name} id of'))
    assert cells(run(files, tmp_path / "out"), "scores")["finetuned"]["Avg.", "WER % ↓"].mark == "*"


def test_averages_are_not_marked_against_a_system_that_lacks_languages(tmp_path: Path) -> None:
    files = [
        base(tmp_path), results(tmp_path, "lors", LORS, all_of(ASR, 0.05)),
        results(tmp_path, "ta", TA, {ASR[0]: 0.25}),
    ]  # fmt: skip
    found = cells(run(files, tmp_path / "out"), "scores")["lors"]
    assert found["ca", "WER % ↓"].mark == "†"
    assert found["Avg.", "WER % ↓"].mark == ""


def test_what_the_base_alone_was_scored_on_is_said_to_be_left_out(tmp_path: Path) -> None:
    files = [base(tmp_path, *ST), results(tmp_path, "ta", TA, all_of(ASR, 0.2))]
    run(files, tmp_path / "out")
    wanted = "Left out, as only pretrained was scored on it: ca st, de st, fr st."
    assert wanted in (tmp_path / "out" / "report.md").read_text()


def test_models_made_for_some_languages_each_have_an_average_together(tmp_path: Path) -> None:
    files = [base(tmp_path)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    for one, other in pairs:
        made = merge("ta", *(delta(f"{LANGUAGES[n]}_asr") for n in (one, other)))
        name = f"ta:{LANGUAGES[one]}+{LANGUAGES[other]}"
        files.append(results(tmp_path, name, made, {ASR[n]: 0.2 for n in (one, other)}))
    average = cells(run(files, tmp_path / "out"), "scores")["ta"]["Avg.", "WER % ↓"]
    assert "*" not in average.mark
    each = [
        fmean(record(f"ta:{LANGUAGES[a]}+{LANGUAGES[b]}", ASR[n], 0.2).score for n in (a, b))
        for a, b in pairs
    ]
    assert float(average.text) == pytest.approx(fmean(each), abs=0.005)


def test_a_model_of_unknown_origin_is_not_taken_for_the_base(tmp_path: Path) -> None:
    files = [
        results(tmp_path, name, made, all_of(ASR, 0.2))
        for name, made in (("merged", TA), ("from the Hub", {}))
    ]
    assert run(files, tmp_path / "out").document["roles"]["base"] is None
    made = TA | {"base": "id of from the Hub"}
    files[0] = results(tmp_path, "merged", made, all_of(ASR, 0.2))
    assert run(files, tmp_path / "again").document["roles"]["base"] == "from the Hub"


def test_seeds_are_one_row_though_ratios_were_chosen_for_each(tmp_path: Path) -> None:
    files = [base(tmp_path)]
    for seed, value in enumerate((0.1, 0.1, 0.5)):
        files.append(results(tmp_path, f"svp:seed{seed}", ratio(value), all_of(ASR, 0.2)))
        files.append(results(tmp_path, f"svp:seed{seed}-x", ratio(value), all_of(ASR, 0.2)))
    found = cells(run(files, tmp_path / "out"), "systems")
    rows = {label: row["SVP", ""].text for label, row in found.items() if label.startswith("svp")}
    assert rows == {"svp (SVP own)": "own", "svp (SVP 0.1)": "0.1", "svp (SVP 0.5)": "0.5"}


def ratio(value: float) -> dict:
    return merge("svp", *(d | {"svp": value} for d in DELTAS))


def test_a_figure_leaves_out_what_a_control_was_not_scored_on(tmp_path: Path) -> None:
    files = [base(tmp_path, *ST)]
    for run_, value in (("a", 0.1), ("b", 0.5)):
        files += [
            results(tmp_path, f"svp:{run_}", ratio(value), all_of([*ASR, *ST], 0.2)),
            results(tmp_path, f"ta_as_svp:{run_}", TA, all_of(ASR, 0.1)),
        ]
    text = tmp_path / "out" / "report.md"
    run(files, tmp_path / "out")
    assert text.read_text().count("ta\\_as\\_svp: ") == 1  # the ASR panel's


def test_two_systems_may_share_a_control(tmp_path: Path) -> None:
    files = [base(tmp_path), results(tmp_path, "c", TA, all_of(ASR, 0.1))]
    for name in ("one", "two"):
        for value in (0.1, 0.5):
            files.append(results(tmp_path, f"{name}:{value}", ratio(value), all_of(ASR, 0.2)))
    found = run(files, tmp_path / "out", controls={"one": "c", "two": "c"})
    assert "figures/retain.svg" in found.files
    with pytest.raises(UsageFault, match="--control one=one: a system cannot be its own control"):
        run(files, tmp_path / "again", controls={"one": "one"})


def test_scores_that_are_no_numbers_are_no_cells(tmp_path: Path) -> None:
    files = [results(tmp_path, f"ta:seed{n}", TA, all_of(ASR, 0.2)) for n in range(2)]
    for path in files:
        document = json.loads(path.read_text())
        for key in ("score", "low", "high", "standard_error"):
            document["records"][0][key] = None
        path.write_text(json.dumps(document))
    found = cells(run([*files, base(tmp_path)], tmp_path / "out"), "scores")["ta"]
    assert found["ca", "WER % ↓"].text == NONE
    assert found["Avg.", "WER % ↓"].text == NONE
    assert "nan" not in (tmp_path / "out" / "report.md").read_text()


def test_odd_names_are_drawn_and_set(tmp_path: Path) -> None:
    files = [base(tmp_path)]
    for name in ("a$\\frac$b", "[z]", "日本"):
        for value in (0.1, 0.5):
            files.append(results(tmp_path, f"{name}:{value}", ratio(value), all_of(ASR, 0.2)))
    found = run(files, tmp_path / "out")
    assert found.warnings == (
        "The figures' font lacks letters of some systems' names, and has boxes.",
    )
    lines = (tmp_path / "out" / "tables.tex").read_text().splitlines()
    assert not [line for line in lines if line.startswith(("[", "*"))]


def test_results_on_nothing_that_a_model_was_made_for_have_no_table_of_scores(
    tmp_path: Path,
) -> None:
    made = merge("ta", delta("ca_asr"))
    files = [
        results(tmp_path, name, how, {ASR[1]: 0.2})
        for name, how in (("pretrained", {}), ("ta", made))
    ]
    found = run(files, tmp_path / "out")
    assert [table.name for table in found.tables] == ["retention", "systems"]
    assert "label{tab:scores}" not in (tmp_path / "out" / "tables.tex").read_text()
