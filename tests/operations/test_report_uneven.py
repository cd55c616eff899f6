"""`report` on results that lack something: languages, tasks, runs, or a number."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import jiwer
import pytest
from report_calls import cells
from results_files import delta, finetune, merge, record, reported, write_results

from lorsmerge_cli import report as run
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UnreadableFile, UsageFault
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.metrics.normalisation import normalise
from lorsmerge_cli.operations.report.entries import system_and_run
from lorsmerge_cli.operations.report.numbers import NONE
from lorsmerge_cli.results.records import Hypothesis, score

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
        found[head, "WER % ↓"].text for head in ("merge", "control", "difference")
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


def test_what_the_base_alone_was_scored_on_is_said_to_be_in_no_table(tmp_path: Path) -> None:
    files = [base(tmp_path, *ST), results(tmp_path, "ta", TA, all_of(ASR, 0.2))]
    run(files, tmp_path / "out")
    wanted = "Not in the tables, as only pretrained was scored on it: ca st, de st, fr st."
    assert wanted in (tmp_path / "out" / "report.md").read_text()


def test_models_made_for_some_languages_each_have_an_average_together(tmp_path: Path) -> None:
    files = [base(tmp_path)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    for one, other in pairs:
        made = merge("ta", *(delta(f"{LANGUAGES[n]}_asr") for n in (one, other)))
        name = f"ta:{LANGUAGES[one]}+{LANGUAGES[other]}"
        files.append(results(tmp_path, name, made, {ASR[n]: 0.2 for n in (one, other)}))
    average = cells(run(files, tmp_path / "out", runs=True), "scores")["ta"]["Avg.", "WER % ↓"]
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
    run(files, tmp_path / "out", runs=True)
    assert text.read_text().count("ta\\_as\\_svp: ") == 1  # the ASR panel's


def test_two_systems_may_share_a_control(tmp_path: Path) -> None:
    files = [base(tmp_path), results(tmp_path, "c", TA, all_of(ASR, 0.1))]
    for name in ("one", "two"):
        for value in (0.1, 0.5):
            files.append(results(tmp_path, f"{name}:{value}", ratio(value), all_of(ASR, 0.2)))
    found = run(files, tmp_path / "out", controls={"one": "c", "two": "c"}, runs=True)
    assert "figures/retain.svg" in found.files
    with pytest.raises(UsageFault, match="--control one=one: a system cannot be its own control"):
        run(files, tmp_path / "again", controls={"one": "one"}, runs=True)


def test_scores_that_are_no_numbers_are_no_cells(tmp_path: Path) -> None:
    files = [results(tmp_path, f"ta:seed{n}", TA, all_of(ASR, 0.2)) for n in range(2)]
    for path in files:
        document = json.loads(path.read_text())
        for key in ("score", "low", "high", "standard_error"):
            reported(document["records"][0])[key] = None
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
    found = run(files, tmp_path / "out", runs=True)
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


# --- what is one system, and what is a run ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted", "with_runs"),
    [
        ("lors", ("lors", ""), ("lors", "")),
        ("lors:seed0", ("lors", "seed0"), ("lors", "seed0")),
        ("lors:seed12-ca+de", ("lors", "seed12-ca+de"), ("lors", "seed12-ca+de")),
        ("lors:ca+de", ("lors:ca+de", ""), ("lors", "ca+de")),
        ("you/merges:ta.safetensors", ("you/merges:ta.safetensors", ""), ("you/merges", "ta.safetensors")),
        ("merges@main:wa.bin", ("merges@main:wa.bin", ""), ("merges@main", "wa.bin")),
        ("you/merges:ta.safetensors:seed1", ("you/merges:ta.safetensors", "seed1"),
         ("you/merges:ta.safetensors", "seed1")),
        ("lors:seeds", ("lors:seeds", ""), ("lors", "seeds")),
        (":seed0", (":seed0", ""), (":seed0", "")),
    ],
)  # fmt: skip
def test_a_colon_is_a_run_s_only_before_a_seed_unless_told(
    name: str, wanted: tuple[str, str], with_runs: tuple[str, str]
) -> None:
    assert system_and_run(name, runs=False) == wanted
    assert system_and_run(name, runs=True) == with_runs


def test_files_of_one_hub_repository_are_systems_of_their_own(tmp_path: Path) -> None:
    files = [base(tmp_path)]
    names = [f"you/merges:{name}.safetensors" for name in ("ta", "lors")]
    for name, made, wrong in zip(names, (TA, LORS), (0.1, 0.2), strict=True):
        path = tmp_path / f"{len(files)}.json"
        records = [record(name, cell, wrong) for cell in ASR]
        files.append(write_results(path, records, {name: made}))
    found = cells(run(files, tmp_path / "out"), "scores")
    assert list(found) == ["pretrained", *names]
    assert found[names[0]]["ca", "WER % ↓"].text == f"{record(names[0], ASR[0], 0.1).score:.2f}"
    with pytest.raises(Mismatch, match=r"'you/merges' that would be averaged differ in method"):
        run(files, tmp_path / "again", runs=True)


def scaled(method: str, scale: float) -> dict:
    return merge(method, *(d | {"scale": scale} for d in DELTAS))


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        (scaled("ta", 0.15), scaled("ta", 0.3), "lambda"),
        (scaled("ta", 0.15), scaled("wa", 0.15), "method"),
        (finetune("ca_asr", "de_asr", "fr_asr"), scaled("ta", 0.15), "method"),
    ],
)
def test_runs_that_are_no_runs_of_one_system_are_an_error_naming_both(
    tmp_path: Path, one: dict, other: dict, what: str
) -> None:
    files = [base(tmp_path)]
    files += [
        results(tmp_path, f"m:seed{n}", made, all_of(ASR, 0.2))
        for n, made in enumerate((one, other))
    ]
    with pytest.raises(Mismatch, match=rf"differ in {what}: 'm:seed0' of .* and 'm:seed1' of "):
        run(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_control_has_its_run_s_lambda_and_so_has_a_tuned_system(tmp_path: Path) -> None:
    files = [base(tmp_path)]
    for seed, scale in enumerate((0.15, 0.16)):
        files.append(results(tmp_path, f"lors:seed{seed}", LORS, all_of(ASR, 0.2)))
        made = scaled("ta", scale)
        files.append(results(tmp_path, f"ta_as_lors:seed{seed}", made, all_of(ASR, 0.2)))
    run(files, tmp_path / "out")
    for seed, scale in enumerate((0.1, 0.4)):
        files.append(results(tmp_path, f"best:seed{seed}", scaled("ta", scale), all_of(ASR, 0.2)))
    with pytest.raises(LorsmergeError, match=r"differ in lambda.* or give --tuned best"):
        run(files, tmp_path / "again")
    found = cells(run(files, tmp_path / "again", tuned=["best"]), "systems")
    assert found["best"]["lambda", ""].text == "0.1 to 0.4"
    with pytest.raises(LorsmergeError, match="--tuned: no result is of 'nobody'"):
        run(files, tmp_path / "third", tuned=["nobody"])


def test_one_name_for_different_weights_is_an_error_naming_both(tmp_path: Path) -> None:
    files = [base(tmp_path)]
    for cell, scale in ((ASR[0], 0.15), (ASR[1], 0.3)):  # never scored on the same set
        files.append(results(tmp_path, "ta", scaled("ta", scale), {cell: 0.2}))
        text = files[-1].read_text().replace('"id of ta"', f'"id of ta at {scale}"')
        files[-1].write_text(text)
    wanted = r"'ta' is the name of different weights: .*lambda 0.15\) and .*lambda 0.3\)"
    with pytest.raises(LorsmergeError, match=wanted):
        run(files, tmp_path / "out")


@pytest.mark.parametrize("covered", [True, False])
def test_fine_tunes_of_a_language_each_share_a_name(tmp_path: Path, covered: bool) -> None:
    """As what is merged of one delta each does; not where both were made for the same."""
    files = [base(tmp_path)]
    for cell in ASR[:2]:
        languages = [cell[1]] if covered else ["ca", "de"]
        made = merge("svp", *(delta(f"{name}_asr", svp=0.1) for name in languages))
        files.append(results(tmp_path, "svp", made, {cell: 0.2}))
        files[-1].write_text(files[-1].read_text().replace("id of svp", f"id of svp {cell}"))
    if covered:
        assert "svp" in cells(run(files, tmp_path / "out"), "scores")
    else:
        with pytest.raises(Mismatch, match="different weights"):
            run(files, tmp_path / "out")


# --- one normalisation, whole sets, visible names --------------------------------------------------


def test_files_of_other_normalisations_are_rescored_to_the_first_one_s(tmp_path: Path) -> None:
    rows = {}
    for name, how in (("a", "basic"), ("b", "raw")):
        rows[name] = [
            Hypothesis(name, "ca", f"u{n}", "ca", "asr", "Hola, món!", f"hola {name} {n % 3}", 1.0, f"s{n}")
            for n in range(12)
        ]  # fmt: skip
        write_results(
            tmp_path / f"{name}.json", [score(rows[name], Scoring(how))], normalisation=how
        )
    for first, second, how in (("a", "b", "basic"), ("b", "a", "raw")):
        out = tmp_path / f"{first} first"
        found = run([tmp_path / f"{first}.json", tmp_path / f"{second}.json"], out)
        for name in rows:
            pair = [
                [normalise(getattr(row, side), how) for row in rows[name]]
                for side in ("reference", "hypothesis")
            ]
            shown = cells(found, "scores")[name]["ca", "WER % ↓"].text
            assert shown == f"{100 * jiwer.wer(*pair):.2f}"
        (note,) = found.notes
        assert f"{second}.json: scored with normalisation" in note


@pytest.mark.parametrize("first", ["auto", "basic"])
def test_the_first_file_s_choice_is_resolved_by_language(tmp_path: Path, first: str) -> None:
    texts = {"hi": ("किताब की कीमत", "कताब क कमत"), "ca": ("Bon dia!", "bon dia")}
    how = {"auto": {"hi": "marks", "ca": "basic"}, "basic": {"hi": "basic", "ca": "basic"}}
    second = next(choice for choice in how if choice != first)
    for name, choice, languages in (
        ("a", first, "hi ca"),
        ("b", second, "hi ca"),
        ("c", second, "ca"),
    ):
        records = [
            score([Hypothesis(name, code, f"u{n}", code, "asr", *texts[code], 1.0, f"s{n}")
                   for n in range(12)], Scoring(choice))
            for code in languages.split()
        ]  # fmt: skip
        write_results(tmp_path / f"{name}.json", records, normalisation=choice)
    found = run([tmp_path / f"{name}.json" for name in "abc"], tmp_path / "out")
    for name, languages in (("a", "hi ca"), ("b", "hi ca"), ("c", "ca")):
        for code in languages.split():
            said = [normalise(text, how[first][code]) for text in texts[code]]
            shown = cells(found, "scores")[name][code, "WER % ↓"].text
            assert shown == f"{100 * jiwer.wer(*said):.2f}"
    (note,) = found.notes  # Catalan alone is scored alike by both
    assert note == (
        f"{tmp_path / 'b.json'}: scored with normalisation {second}, and rescored here with {first}, "
        "that of the first file."
    )


def test_a_normalisation_that_there_is_not_is_an_unreadable_file(tmp_path: Path) -> None:
    path = base(tmp_path)
    document = json.loads(path.read_text())
    document["settings"]["scoring"]["normalisation"] = "magic"
    path.write_text(json.dumps(document))
    with pytest.raises(UnreadableFile, match="there is no normalisation 'magic'"):
        run([path], tmp_path / "out")


def test_results_of_an_older_version_have_their_intervals_made_anew(tmp_path: Path) -> None:
    path = base(tmp_path)
    wanted = cells(run([path], tmp_path / "new"), "scores")
    document = json.loads(path.read_text())
    for stored in document["records"]:
        del stored["blocks"], stored["block_unit"]
        reported(stored)["standard_error"] = 99.0
    path.write_text(json.dumps(document))
    assert cells(run([path], tmp_path / "old"), "scores") == wanted


def test_a_set_that_was_not_scored_whole_is_marked_in_every_format(tmp_path: Path) -> None:
    path = base(tmp_path)
    document = json.loads(path.read_text())
    document["settings"]["dropped"] = {
        "ca": {"missing audio": 2, "too long": 1, "of another language": 40},
        "de": {"of another task": 7},
    }
    document["settings"]["partial"] = {"de": [30, 200]}
    path.write_text(json.dumps(document))
    found = run([path], tmp_path / "out")
    heads = [head for head, _ in found.tables[0].heads]
    assert heads[:3] == ["ca§", "de§", "fr"]
    assert found.notes == (
        "ca is not whole: 3 rows were skipped (2 missing audio, 1 too long).",
        "de is not whole: 30 of 200 utterances were scored.",
    )
    for name in ("report.html", "report.md"):
        assert "§ not the whole set (ca: 3 rows" in (tmp_path / "out" / name).read_text()
    assert r"\S{}" in (tmp_path / "out" / "tables.tex").read_text()


@pytest.mark.parametrize("dropped", ["x", [1], {"ca": 3}, {"ca": {"too long": "many"}}])
def test_skipped_rows_that_are_no_numbers_are_an_unreadable_file(
    tmp_path: Path, dropped: object
) -> None:
    path = base(tmp_path)
    document = json.loads(path.read_text())
    document["settings"]["dropped"] = dropped
    path.write_text(json.dumps(document))
    with pytest.raises(LorsmergeError, match=r"json is no results file of `lorsmerge eval`"):
        run([path], tmp_path / "out")


@pytest.mark.parametrize("place", ["model", "dataset"])
def test_names_that_steer_what_is_shown_are_spelled_out(tmp_path: Path, place: str) -> None:
    evil = "a\u202etxt.exe\u2066\x1b[31m\u2028b"
    name, dataset = (evil, "ca") if place == "model" else ("m", evil)
    path = write_results(tmp_path / "r.json", [record(name, (dataset, "ca", "asr"), 0.2),
                                               record(name, ("x", "ca", "asr"), 0.2)])  # fmt: skip
    run([path], tmp_path / "out")
    for file in ("report.html", "report.md", "tables.tex", "report.json"):
        text = (tmp_path / "out" / file).read_text(encoding="utf-8")
        assert not set(text) & set("\u202e\u2066\x1b\u2028")
        assert "202etxt.exe" in text
