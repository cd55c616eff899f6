"""`eval` and `transcribe` as operations: scores of jiwer and sacreBLEU, runs that go on, deltas applied."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import pytest
import sacrebleu
import soundfile
import torch
from operation_calls import load, same_bits
from results_files import reported
from safetensors.torch import load_file, save_file
from speech_models import make_clip, make_test_set, make_tuned, make_whisper

from lorsmerge_cli import delta, merge
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.utterance import Answer, Drop, Utterance
from lorsmerge_cli.errors import Mismatch, NonFinite, OutputFault, UnreadableFile, UsageFault
from lorsmerge_cli.metrics import METRICS
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.metrics.normalisation import NORMALISATIONS, SPELLING, normalise
from lorsmerge_cli.metrics.wer import STORED
from lorsmerge_cli.operations.eval import read_test_set, rescore, run_evaluation
from lorsmerge_cli.operations.transcribe import transcribe
from lorsmerge_cli.results.document import EvalReport, TestSet, read_results, record_document
from lorsmerge_cli.results.hypotheses import HypothesesFile, read_hypotheses, write_trn
from lorsmerge_cli.results.records import (
    Hypothesis,
    Record,
    average,
    compare,
    dev_scores,
    dev_statistics,
    score,
)
from lorsmerge_cli.speech import source as source_module
from lorsmerge_cli.speech.decoding import clips as decoding
from lorsmerge_cli.speech.model import audio_of
from lorsmerge_cli.speech.source import (
    ModelSource,
    compute_dtype,
    find_model,
    parse_speech_dtype,
)

SCORING = Scoring(samples=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, ca/, de/, their deltas, and data/test.jsonl. Read only."""
    folder = tmp_path_factory.mktemp("eval")
    make_whisper(folder / "base")
    for seed, name in enumerate(("ca", "de"), 1):
        make_tuned(folder / "base", folder / name, seed=seed)
        delta(folder / "base", folder / name, folder / f"{name}.delta", language=name)
    make_test_set(folder / "data")
    return folder


@pytest.fixture(scope="module")
def test_set(folder: Path) -> TestSet:
    rows = load_data([folder / "data" / "test.jsonl"], max_seconds=2.0).utterances
    return TestSet("test", rows)


@pytest.fixture(scope="module")
def base(folder: Path) -> ModelSource:
    return find_model(folder / "base", name="base")


def run(models: list[ModelSource], *tests: TestSet, **changes: Any) -> EvalReport:
    settings: dict[str, Any] = {"scoring": SCORING, "beam": 1, "device": "cpu"}
    return run_evaluation(models, tests, **settings | changes)


def texts(report: EvalReport) -> dict[tuple[str, str], str]:
    return {(row.model, row.id): row.hypothesis for record in report.records for row in record.rows}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the utterances that are really decoded."""
    seen: list[str] = []
    real = decoding.decode_answers

    def record(speech: Any, rows: Any, *rest: Any) -> dict[str, Answer]:
        seen.extend(row.id for row in rows)
        return real(speech, rows, *rest)

    monkeypatch.setattr(decoding, "decode_answers", record)
    return seen


# --- scores ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(folder: Path, test_set: TestSet, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The results file of two models."""
    models = [find_model(folder / name, name=name) for name in ("base", "ca")]
    output = tmp_path_factory.mktemp("results") / "results.json"
    run(models, test_set, beam=3, output=output)
    return json.loads(output.read_text())


def pairs(record: dict, how: str) -> tuple[list[str], list[str]]:
    rows = record["rows"]
    return tuple([normalise(row[key], how) for row in rows] for key in ("reference", "hypothesis"))


@pytest.mark.parametrize("how", STORED)
def test_error_rates_are_jiwers(results: dict, how: str) -> None:
    records = [record for record in results["records"] if record["metric"] == "WER"]
    assert len(records) == 4
    for record in records:
        words = jiwer.process_words(*pairs(record, how))
        stored = record["details"]["normalisations"][how]
        assert stored["rate"] == pytest.approx(100 * words.wer)
        for kind in ("hits", "substitutions", "deletions", "insertions"):
            assert stored[kind] == getattr(words, kind)
    assert any(record["details"]["hits"] for record in records)


def test_the_reported_rates_are_of_the_chosen_normalisation(results: dict) -> None:
    for record in results["records"]:
        if record["task"] == "asr":
            references, hypotheses = pairs(record, "basic")
            close = [[t.replace(" ", "") for t in side] for side in (references, hypotheses)]
            rates = {"WER": jiwer.wer(references, hypotheses), "CER": jiwer.cer(*close)}
            for metric, rate in rates.items():
                assert record["scores"][metric]["score"] == pytest.approx(100 * rate)
            assert record["scores"].keys() == rates.keys()
            assert "norm:basic" in reported(record)["signature"]


def test_bleu_and_chrf_are_sacrebleus(results: dict) -> None:
    records = [record for record in results["records"] if record["task"] == "st"]
    assert len(records) == 4
    for record in records:
        rows = record["rows"]
        hypotheses = [row["hypothesis"] for row in rows]
        references = [[row["reference"] for row in rows]]
        bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
        assert list(record["scores"]) == ["BLEU", "chrF2"]
        for stored, metric in zip(record["scores"].values(), (bleu, chrf), strict=True):
            found = metric.corpus_score(hypotheses, references).score
            assert stored["score"] == pytest.approx(found, rel=1e-12)
            assert stored["signature"] == str(metric.get_signature())
            assert stored["low"] < found < stored["high"]
    assert any(record["scores"]["chrF2"]["score"] for record in records)


def test_languages_without_spaces_are_scored_in_characters(results: dict) -> None:
    metrics = {(r["language"], r["task"]): r["metric"] for r in results["records"]}
    assert metrics == {
        ("ca", "asr"): "WER", ("de", "asr"): "WER", ("zh", "asr"): "CER",
        ("ca", "st"): "BLEU", ("de", "st"): "BLEU",
    }  # fmt: skip


def test_results_hold_every_utterance_and_what_scores_depend_on(
    results: dict, test_set: TestSet
) -> None:
    for model in ("base", "ca"):
        rows = [r for record in results["records"] if record["model"] == model
                for r in record["rows"]]  # fmt: skip
        assert {row["id"]: row["reference"] for row in rows} == {
            row.id: row.text for row in test_set.utterances
        }
        assert sum(row["seconds"] for row in rows) == pytest.approx(
            sum(row.duration or 0 for row in test_set.utterances)
        )
    assert results["settings"]["decoding"] == {
        "beam": 3, "batch_size": None, "max_tokens": None, "suppress": [], "begin_suppress": [],
        "dtype": "float32",
    }  # fmt: skip
    assert results["settings"]["versions"]["jiwer"] in results["settings"]["signature"]


def answer(language: str, reference: str, hypothesis: str, **more: Any) -> Hypothesis:
    return Hypothesis("m", "d", "u", language, "asr", reference, hypothesis, 1.0, **more)


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "how", "rate"),
    [
        ("en", "I'm at the colour centre, Mr. Smith", "I am at the color center mister Smith",
         "english", 0),
        ("hi", "किताब की कीमत", "कताब क कमत", "marks", 100),
        ("th", "น้ำที่นี่ดีมาก", "นำทนดมาก", "marks", 100 * 6 / 14),
        ("ca", "Bon dia!", "bon dia", "basic", 0),
        ("tr", "Irak ISI", "\u0131rak \u0131s\u0131", "turkish", 0),
    ],
)  # fmt: skip
def test_transcripts_are_normalised_by_their_language(
    language: str, reference: str, hypothesis: str, how: str, rate: float
) -> None:
    record = score([answer(language, reference, hypothesis)], SCORING)
    assert record.score == pytest.approx(rate)
    assert record.details["normalisation"] == how
    assert f"norm:{how}|" in record.reported.signature
    assert record_document(record)["details"]["normalisations"][how]["rate"] == pytest.approx(rate)
    dev = [Utterance("u", AudioFile(Path("x")), reference, language, "asr")]
    assert dev_scores(dev, {"u": hypothesis})[f"{language}_asr"] == pytest.approx(rate)
    raw = dev_scores(dev, {"u": hypothesis}, "raw")
    assert raw[f"{language}_asr"] == record.details["normalisations"]["raw"]["rate"]
    for choice, expected in (("auto", record.score), ("raw", raw[f"{language}_asr"])):
        ((errors, length),) = dev_statistics(dev, {"u": hypothesis}, choice)[f"{language}_asr"]
        assert 100 * errors / length == pytest.approx(expected)
    same = answer(language, reference, reference)
    better = compare([(record, score([same], SCORING))], SCORING)
    assert better.difference == pytest.approx(-rate)


def test_cut_and_looping_hypotheses_are_counted(
    base: ModelSource, test_set: TestSet, tmp_path: Path
) -> None:
    report = run([base], test_set, max_tokens=3, hypotheses=tmp_path / "h.jsonl")
    every = [row for record in report.records for row in record.rows]
    cut = sum(bool(row.cut) for row in every)
    assert 0 < cut == sum(record.details["cut"] for record in report.records)
    assert report.warnings == (
        f"{cut} of 10 hypotheses were cut at --max-tokens 3: what would have come after is missing "
        "from the scores.",
    )
    again = run([base], test_set, max_tokens=3, hypotheses=tmp_path / "h.jsonl")
    assert (again.records, again.speed) == (report.records, {})
    assert {
        row["id"]: row["cut"] for r in report.records for row in record_document(r)["rows"]
    } == {row.id: row.cut for row in every}
    loop = answer("ca", "el nen", "el nen veu ocells " * 12, cut=False)
    record = score([loop, replace(loop, id="v", hypothesis="el nen", cut=True)], SCORING)
    assert (record.details["cut"], record.details["looping"]) == (1, 1)
    # a file of an earlier version says nothing of it
    old = score([loop, replace(loop, id="v", cut=None)], SCORING)
    assert (old.details["cut"], old.details["looping"]) == (None, 2)


def test_a_signature_has_the_limit_and_a_digest_of_what_is_suppressed(
    folder: Path, base: ModelSource, test_set: TestSet, tmp_path: Path
) -> None:
    own = find_model(make_whisper(tmp_path / "own", suppress=(3, 4)), name="own")
    signatures = [
        run(models, test_set, **changes).settings["signature"]
        for models, changes in (
            ([base], {}), ([base], {"max_tokens": 3}), ([base], {"max_tokens": 12}), ([own], {}),
        )
    ]  # fmt: skip
    assert len(set(signatures)) == 4
    assert "|max:None|" in signatures[0]
    assert "|max_new:3|" in signatures[1]


def test_another_table_of_spellings_is_told(test_set: TestSet, tmp_path: Path) -> None:
    model = find_model(make_whisper(tmp_path / "m"), name="m")
    table = tmp_path / "m" / "normalizer.json"
    table.write_text(SPELLING.read_text())
    assert run([model], test_set).warnings == ()
    table.write_text('{"colour": "color"}')
    (warning,) = run([model], test_set).warnings
    assert str(table) in warning


def test_what_a_metric_needs_is_checked_before_anything_is_scored(
    base: ModelSource, test_set: TestSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(METRICS["chrf"], name="chrf2s", only_asked=True, needs_source=True)
    monkeypatch.setitem(METRICS, "own", known)
    own = replace(SCORING, metrics=("own",))
    with pytest.raises(Mismatch, match=r"4 of 4 st utterances have no transcript .* source_text"):
        run([base], test_set, scoring=own)
    with pytest.raises(UsageFault, match="--metric own scores st, and the data has none"):
        run(
            [base], TestSet("asr", [u for u in test_set.utterances if u.task == "asr"]), scoring=own
        )
    with pytest.raises(UsageFault, match="There is no metric 'other'"):
        run([base], test_set, scoring=replace(SCORING, metrics=("other",)))
    rows = [replace(u, source_text="x" if u.task == "st" else None) for u in test_set.utterances]
    file, output = tmp_path / "h.jsonl", tmp_path / "r.json"
    models = [base, replace(base, name="again")]
    compared = ("base", "again")
    report = run(
        models,
        TestSet("test", rows),
        scoring=own,
        hypotheses=file,
        output=output,
        compared=compared,
    )
    metrics = [(a.task, m.name) for a, _, m, _, _ in report.comparisons]
    assert sorted(metrics) == [("asr", "CER"), ("asr", "WER"), ("asr", "WER"),
                               *[("st", "BLEU")] * 2, *[("st", "chrf2s")] * 2]  # fmt: skip
    for record in read_results(output).records:
        assert ("chrf2s" in record.scores) == (record.task == "st")
        assert {row.source_text for row in record.rows} == {"x" if record.task == "st" else None}
    again = rescore(file, scoring=own)  # the transcripts are with the hypotheses
    found, kept = (
        {(r.model, r.language, r.task): r.scores for r in each.records} for each in (report, again)
    )
    assert found == kept


def test_an_average_adds_independent_errors_in_squares() -> None:
    row = Hypothesis("m", "d", "u", "ca", "asr", "a b", "a", 1.0)
    record = score([row], SCORING)
    two = [
        replace(record, scores={"WER": replace(record.reported, score=value, standard_error=error)})
        for value, error in ((10.0, 3.0), (20.0, 4.0))
    ]
    assert average(two) == (15.0, 2.5)


def test_one_list_of_suppressed_tokens_holds_for_all_models(
    folder: Path, test_set: TestSet, tmp_path: Path, base: ModelSource
) -> None:
    alone = texts(run([base], test_set))
    listed = sorted(range(30))
    own = find_model(make_whisper(tmp_path / "own", suppress=tuple(listed)), name="own")
    both = texts(run([base, own], test_set))
    assert {key[1]: text for key, text in both.items() if key[0] == "own"} == {
        key[1]: text for key, text in alone.items()
    }
    other = run([own, base], test_set)
    assert other.settings["decoding"]["suppress"] == tuple(listed)
    assert {text for key, text in texts(other).items() if key[0] == "base"} != set(alone.values())


# --- going on -------------------------------------------------------------------------------------


def spoil(file: Path) -> None:
    """Cut a file as a kill in mid write would, inside a letter of two bytes if there is one."""
    raw = file.read_bytes()
    last = raw.rfind(b"\n", 0, -1) + 1
    wide = next((at for at in range(last, len(raw)) if raw[at] >= 0x80), last + 20)
    file.write_bytes(raw[: wide + 1])


def test_hypotheses_there_already_are_not_decoded_again(
    base: ModelSource, test_set: TestSet, tmp_path: Path, decoded: list[str]
) -> None:
    file = tmp_path / "h.jsonl"
    half = TestSet("test", test_set.utterances[:4])
    run([base], half, hypotheses=file)
    decoded.clear()
    resumed = run([base], test_set, hypotheses=file)
    assert sorted(decoded) == sorted(row.id for row in test_set.utterances[4:])
    assert resumed.records == run([base], test_set).records
    decoded.clear()
    again = run([base], test_set, hypotheses=file)
    assert decoded == []
    assert again.records == resumed.records
    assert again.speed == {}


@pytest.mark.parametrize("whole", [False, True], ids=["cut", "without its end of line"])
def test_a_last_line_cut_short_is_done_again_and_leaves_no_trace(
    base: ModelSource, test_set: TestSet, tmp_path: Path, decoded: list[str], whole: bool
) -> None:
    file = tmp_path / "h.jsonl"
    expected = run([base], test_set, hypotheses=file)
    complete = file.read_bytes()
    if whole:
        file.write_bytes(complete[:-1])
    else:
        spoil(file)
    decoded.clear()
    assert run([base], test_set, hypotheses=file).records == expected.records
    assert len(decoded) == (0 if whole else 1)
    more = TestSet("more", test_set.utterances[:2])
    run([base], test_set, more, hypotheses=file)
    assert file.read_bytes().startswith(complete)  # or a third run stumbles over the rest of it
    assert len(read_hypotheses(file)) == len(test_set.utterances) + 2


@pytest.mark.parametrize(
    "changes",
    [{"beam": 2}, {"max_tokens": 8}, {"dtype": "bfloat16"}, {"model": "ca"}, {"lists": 1}],
)
def test_other_weights_or_settings_are_refused(
    folder: Path,
    base: ModelSource,
    test_set: TestSet,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    file = tmp_path / "h.jsonl"
    model: ModelSource = base
    if "lists" in changes:  # as many tokens, and others
        model = find_model(make_whisper(tmp_path / "a", suppress=(1, 2)), name="base")
    run([model], test_set, hypotheses=file)
    before = file.read_bytes()
    if changes.pop("lists", None):
        model = find_model(make_whisper(tmp_path / "b", suppress=(3, 4)), name="base")
    if "model" in changes:
        model = find_model(folder / changes.pop("model"), name="base")
    with pytest.raises(
        Mismatch, match=r"h\.jsonl holds hypotheses of 'base' on 'test' that were made differently"
    ):
        run([model], test_set, hypotheses=file, **changes)
    assert file.read_bytes() == before


def test_another_batch_size_is_no_other_setting(
    base: ModelSource, test_set: TestSet, tmp_path: Path, decoded: list[str]
) -> None:
    run([base], test_set, hypotheses=tmp_path / "h.jsonl", batch_size=2)
    decoded.clear()
    run([base], test_set, hypotheses=tmp_path / "h.jsonl", batch_size=5)
    assert decoded == []


def test_a_corrected_reference_is_the_one_scored(
    base: ModelSource, test_set: TestSet, tmp_path: Path, decoded: list[str]
) -> None:
    file = tmp_path / "h.jsonl"
    run([base], test_set, hypotheses=file)
    corrected = TestSet(
        "test", tuple(replace(row, text=f"{row.text} today") for row in test_set.utterances)
    )
    decoded.clear()
    assert run([base], corrected, hypotheses=file).records == run([base], corrected).records
    assert decoded == [row.id for row in test_set.utterances]  # by the run without a file


def test_an_utterance_in_another_language_is_decoded_again(
    base: ModelSource, test_set: TestSet, tmp_path: Path, decoded: list[str]
) -> None:
    file = tmp_path / "h.jsonl"
    run([base], test_set, hypotheses=file)
    german = TestSet("test", tuple(replace(row, language="de") for row in test_set.utterances))
    expected = run([base], german)
    decoded.clear()
    assert run([base], german, hypotheses=file).records == expected.records
    changed = [row.id for row in test_set.utterances if row.language != "de"]
    assert sorted(decoded) == sorted(changed)


def test_hypotheses_of_other_audio_under_the_same_names_are_refused(
    base: ModelSource, test_set: TestSet, tmp_path: Path
) -> None:
    """The clean and the noisy form of a set, both in test.jsonl."""
    file = tmp_path / "h.jsonl"
    run([base], test_set, hypotheses=file)
    noisy = []
    for row in test_set.utterances:
        samples, rate = soundfile.read(row.audio.path)
        soundfile.write(tmp_path / row.audio.name, 0.5 * samples, rate)
        noisy.append(replace(row, audio=AudioFile(tmp_path / row.audio.name)))
    with pytest.raises(Mismatch, match=r"to other audio than .*u\d.*--data NAME=PATH"):
        run([base], TestSet("test", tuple(noisy)), hypotheses=file)
    moved = [
        replace(row, audio=AudioFile(Path(shutil.copy(row.audio.path, tmp_path))))
        for row in test_set.utterances
    ]
    again = run([base], TestSet("test", tuple(moved)), hypotheses=file)
    assert not again.speed  # nothing was decoded


def test_what_is_not_scored_is_in_the_results(base: ModelSource, test_set: TestSet) -> None:
    drops = tuple(Drop(name, Path(name), "missing audio") for name in "ab")
    report = run([base], replace(test_set, drops=drops))
    assert report.settings["dropped"] == {"test": {"missing audio": 2}}
    assert "dropped" not in run([base], test_set).settings


def test_a_model_of_another_vocabulary_has_its_own_list(
    base: ModelSource, test_set: TestSet, tmp_path: Path
) -> None:
    """The first model's list names tokens by numbers, the other's end perhaps."""
    ids = base.open(torch.float32, "cpu").vocabulary
    other = make_whisper(tmp_path / "other", suppress=tuple(ids[f"Ġ{w}"] for w in ("the", "red")))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["Ġsix"], vocabulary["Ġred"] = vocabulary["Ġred"], vocabulary["Ġsix"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    first = find_model(other, name="other")
    report = run([first, base], test_set)
    expected = run([base], test_set)
    assert texts(report).items() >= texts(expected).items()
    assert report.warnings == (
        "base has another vocabulary than other, so its own list of suppressed tokens is used.",
    )
    assert not expected.warnings


def test_a_pickle_is_scored_as_the_model_that_it_is(
    folder: Path, base: ModelSource, test_set: TestSet, tmp_path: Path
) -> None:
    torch.save(load_file(folder / "base" / "model.safetensors"), tmp_path / "base.bin")
    pickled = find_model(tmp_path / "base.bin", name="base", config_dir=folder / "base")
    assert run([pickled], test_set).records == run([base], test_set).records


def test_a_run_that_is_stopped_keeps_what_was_decoded(
    base: ModelSource, test_set: TestSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "h.jsonl"
    real = HypothesesFile.add
    calls = iter(range(100))

    def stop(self: HypothesesFile, rows: Any, made_by: str) -> None:
        real(self, rows, made_by)
        if next(calls) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(HypothesesFile, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        run([base], test_set, hypotheses=file, batch_size=2)
    assert len(read_hypotheses(file)) == 6


NOWHERE = Utterance("u", AudioFile(Path("nowhere.wav")), "", "ca", "asr", 1.0)
ODD = ["line\u2028separator", "next\u0085line", "form\x0cfeed", 'quote " and \\', "né\nnew"]


@pytest.mark.parametrize("text", ODD)
def test_any_text_comes_back_from_a_hypotheses_file(tmp_path: Path, text: str) -> None:
    row = Hypothesis("m", "d", "u", "ca", "asr", text, text, 1.0)
    file = HypothesesFile(tmp_path / "h.jsonl")
    for _ in range(2):
        file.add([(row, NOWHERE)], "x")
    assert [known[:2] for known in read_hypotheses(tmp_path / "h.jsonl")] == [(row, "x")] * 2


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    row = Hypothesis("m", "d", "u", "ca", "asr", "a", "b", 1.0)
    HypothesesFile(file).add([(row, NOWHERE)], "x")
    line = file.read_bytes()
    file.write_bytes(line + b'{"model": "m"}\n' + line)
    with pytest.raises(UnreadableFile, match=r"h\.jsonl, line 2 is no hypothesis"):
        read_hypotheses(file)


# --- scoring again --------------------------------------------------------------------------------


def one_answer(**changes: Any) -> Hypothesis:
    return Hypothesis(**{
        "model": "m", "dataset": "d", "id": "u", "language": "ca", "task": "asr", "reference": "a b",
        "hypothesis": "a", "seconds": 1.0, **changes,
    })  # fmt: skip


@pytest.mark.parametrize(
    "again", [{}, {"hypothesis": "another"}, {"reference": "x"}, {"seconds": 2.0}]
)
def test_an_utterance_that_was_answered_twice_is_not_scored_twice(
    tmp_path: Path, again: dict[str, Any]
) -> None:
    path = tmp_path / "h.jsonl"
    rows = [one_answer(), one_answer(id="v"), one_answer(**again)]
    HypothesesFile(path).add([(row, NOWHERE) for row in rows], "x")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n"))  # an empty line after each
    with pytest.raises(Mismatch, match=r"h\.jsonl has .*'u' of 'd' by 'm' in lines 1, 5"):
        rescore(path, scoring=SCORING)


@pytest.mark.parametrize(
    "again", [{"model": "n"}, {"dataset": "e"}, {"language": "es"}, {"task": "st"}, {"id": "v"}]
)
def test_one_id_of_two_sets_is_two_utterances(tmp_path: Path, again: dict[str, Any]) -> None:
    path = tmp_path / "h.jsonl"
    HypothesesFile(path).add([(row, NOWHERE) for row in (one_answer(), one_answer(**again))], "x")
    assert sum(len(record.rows) for record in rescore(path, scoring=SCORING).records) == 2


def test_of_many_that_were_answered_twice_a_few_are_named(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    for _ in range(2):
        HypothesesFile(path).add([(one_answer(id=f"u{n}"), NOWHERE) for n in range(9)], "x")
    with pytest.raises(Mismatch, match=r"to 9 utterances.*'u2' .* lines 3, 12; and 6 more"):
        rescore(path, scoring=SCORING)


@pytest.mark.parametrize(
    ("again", "maker", "words"),
    [
        ({"id": "v"}, "y|beam:1", "made in two ways .lines 1 and 2.: by other weights"),
        ({"id": "v"}, "x|beam:5", "made in two ways .lines 1 and 2.: beam:1, now beam:5"),
        (
            {"model": "n", "reference": "x"},
            "y|beam:1",
            "another reference for 'u' of 'd' in line 2",
        ),
        ({"model": "n", "speaker": "s"}, "y|beam:1", "another speaker for 'u' of 'd' in line 2"),
    ],
)
def test_lines_that_do_not_belong_together_are_not_scored_together(
    tmp_path: Path, again: dict[str, Any], maker: str, words: str
) -> None:
    path = tmp_path / "h.jsonl"
    HypothesesFile(path).add([(one_answer(), NOWHERE)], "x|beam:1")
    HypothesesFile(path).add([(one_answer(**again), NOWHERE)], maker)
    with pytest.raises(Mismatch, match=words):
        rescore(path, scoring=SCORING)


def test_models_that_heard_other_audio_are_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    HypothesesFile(path).add([(one_answer(), NOWHERE)], "x|beam:1")
    other = replace(NOWHERE, start=1.0)
    HypothesesFile(path).add([(one_answer(model="n"), other)], "y|beam:1")
    with pytest.raises(Mismatch, match="another audio for 'u' of 'd' in line 2 than in line 1"):
        rescore(path, scoring=SCORING)


def test_models_that_were_decoded_otherwise_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    HypothesesFile(path).add([(one_answer(), NOWHERE)], "x|beam:1")
    HypothesesFile(path).add([(one_answer(model="n"), NOWHERE)], "y|beam:5")
    assert any("2 ways: beam:1; beam:5" in text for text in rescore(path, scoring=SCORING).warnings)


def test_rescoring_gives_the_same_records(folder: Path, test_set: TestSet, tmp_path: Path) -> None:
    models = [find_model(folder / name, name=name) for name in ("base", "ca")]
    file = tmp_path / "h.jsonl"
    first = run(models, test_set, hypotheses=file, compared=("base", "ca"))
    again = rescore(file, scoring=SCORING, compared=("base", "ca"))
    groups = [
        {(r.model, r.language, r.task): r for r in report.records} for report in (first, again)
    ]
    assert groups[0].keys() == groups[1].keys()
    for key, record in groups[0].items():
        other = groups[1][key]
        assert (record.score, record.details) == (other.score, other.details)
        assert record.scores == other.scores
        assert set(record.rows) == set(other.rows)
    assert len(again.comparisons) == len(first.comparisons) == 5
    assert {name: made["identity"] for name, made in again.models.items()} == {
        name: made["identity"] for name, made in first.models.items()
    }


def test_rescoring_normalises_otherwise(
    base: ModelSource, test_set: TestSet, tmp_path: Path
) -> None:
    run([base], test_set, hypotheses=tmp_path / "h.jsonl")
    for how in NORMALISATIONS:
        report = rescore(tmp_path / "h.jsonl", scoring=replace(SCORING, normalisation=how))
        for record in report.records:
            if record.task == "asr":
                assert record.score == record.details["normalisations"][how]["rate"]


def test_basic_of_a_script_with_vowel_signs_is_told(tmp_path: Path) -> None:
    rows = [
        {"model": "m", "dataset": "d", "id": "u", "language": language, "task": task,
         "reference": "किताबें पढ़ते", "hypothesis": "किताब पढ़ती", "seconds": 1.0, "speaker": None}
        for language, task in (("hi", "asr"), ("ta", "st"), ("ca", "asr"))
    ]  # fmt: skip
    file = tmp_path / "h.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (warning,) = rescore(file, scoring=replace(SCORING, normalisation="basic")).warnings
    assert warning.startswith("hi: basic makes spaces of its vowel signs")
    report = rescore(file, scoring=SCORING)
    assert report.warnings == ()
    assert report.records[0].score == 100


@pytest.mark.parametrize(("how", "words"), [("raw", 3), ("basic", 0), ("marks", 0)])
def test_references_and_hypotheses_are_both_normalised(how: str, words: int) -> None:
    for reference, said in (("Hola, Món! és", "hola món és."), ("hola món és.", "Hola, Món! és")):
        row = Hypothesis("m", "d", "u", "ca", "asr", reference, said, 1.0)
        record = score([row], replace(SCORING, normalisation=how))
        assert record.score == pytest.approx(100 * words / 3)
        assert record.details["substitutions"] == words


def test_a_comparison_of_one_utterance_is_json(
    folder: Path, test_set: TestSet, tmp_path: Path
) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    models = [find_model(folder / name, name=name) for name in ("base", "ca")]
    output = tmp_path / "r.json"
    run(models, TestSet("one", test_set.utterances[:1]), output=output, compared=("base", "ca"))
    (found,) = json.loads(output.read_text(), parse_constant=refuse)["comparisons"]
    assert found["p_value"] is None
    nothing = {"low": None, "high": None, "standard_error": None, "blocks": 1}
    assert found["interval"] == nothing


def test_systems_of_other_utterances_are_not_compared(tmp_path: Path) -> None:
    rows = [Hypothesis(model, "d", name, "ca", "asr", "a", "b", 1.0)
            for model, name in (("a", "1"), ("a", "2"), ("b", "1"), ("b", "3"))]  # fmt: skip
    HypothesesFile(tmp_path / "h.jsonl").add([(row, NOWHERE) for row in rows], "x")
    with pytest.raises(Mismatch, match=r"different utterances of 'd': a 2 of 3, b 2 of 3"):
        rescore(tmp_path / "h.jsonl", scoring=SCORING, compared=("a", "b"))


def said(path: Path, model: str, dataset: str, names: range, of: int) -> None:
    """Add hypotheses of a data set of some size to a file."""
    rows = [
        Hypothesis(model, dataset, f"u{n}", "ca", "asr", "a b", "a", 1.0, f"s{n}") for n in names
    ]
    file = HypothesesFile(path)
    file.known(model, dataset, "x", [NOWHERE] * of)
    file.add([(row, NOWHERE) for row in rows], "x")


def test_an_unfinished_file_of_unequal_sets_is_refused_with_counts(tmp_path: Path) -> None:
    """As a kill leaves it in the second model."""
    path, output = tmp_path / "h.jsonl", tmp_path / "r.json"
    said(path, "base", "ca", range(20), 20)
    said(path, "wa", "ca", range(8), 20)
    with pytest.raises(
        Mismatch, match=r"h.jsonl is unfinished.* of 'ca': base 20 of 20, wa 8 of 20\. Finish it"
    ):
        rescore(path, scoring=SCORING, output=output)
    assert not output.exists()


def test_a_part_of_a_set_is_scored_and_said_to_be_one(tmp_path: Path) -> None:
    """As a kill leaves it in the first model; a set that is whole is not mentioned."""
    path, output = tmp_path / "h.jsonl", tmp_path / "r.json"
    said(path, "base", "de", range(5), 5)
    said(path, "base", "ca", range(8), 20)
    report = rescore(path, scoring=SCORING, output=output)
    assert report.warnings == (
        f"{path} is unfinished: the scores of ca are of 8 of 20 utterances.",
    )
    assert json.loads(output.read_text())["settings"]["partial"] == {"ca": [8, 20]}


def test_a_finished_file_is_whole_whatever_order_its_lines_have(
    base: ModelSource, test_set: TestSet, tmp_path: Path
) -> None:
    path = tmp_path / "h.jsonl"
    run([base], TestSet("test", test_set.utterances[:4]), hypotheses=path)
    whole = run([base], test_set, hypotheses=path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(lines)))
    again = rescore(path, scoring=SCORING)
    assert again.warnings == ()
    assert [r.score for r in again.records if r.model == "base"] == pytest.approx(
        [next(w.score for w in whole.records if (w.language, w.task) == (r.language, r.task))
         for r in again.records]
    )  # fmt: skip
    path.write_text("".join(lines[:6]))
    assert "6 of 10 utterances" in rescore(path, scoring=SCORING).warnings[0]


# --- transcripts ----------------------------------------------------------------------------------


def test_trn_lines_are_text_and_speaker_with_utterance(tmp_path: Path) -> None:
    rows = (
        Hypothesis("m/1", "d", "u 1/a", "ca", "asr", "el (riu) nen", "a/b {c;d}", 1.0, "s-1"),
        Hypothesis("m/1", "d", "u2", "ca", "asr", "els  ocells", "", 1.0),
    )
    record: Record = score(rows, SCORING)
    paths = write_trn(tmp_path / "new", [record], force=False)
    assert [path.name for path in paths] == ["m_1-d-ca-asr.ref.trn", "m_1-d-ca-asr.hyp.trn"]
    reference, hypothesis = (path.read_text().splitlines() for path in paths)
    assert [" ".join(line.split()) for line in reference] == [
        "el riu nen (s_1-u_1_a)", "els ocells (u2-u2)",
    ]  # fmt: skip
    assert [" ".join(line.split()) for line in hypothesis] == ["a b c d (s_1-u_1_a)", "(u2-u2)"]


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.15, -1.0, 0.0])
@pytest.mark.parametrize("names", [("ca",), ("ca", "de")])
def test_deltas_applied_are_the_merge_on_disk_to_the_last_bit(
    folder: Path, test_set: TestSet, tmp_path: Path, names: tuple[str, ...], scale: float
) -> None:
    deltas = [folder / f"{name}.delta" for name in names]
    merge(folder / "base", list(deltas), tmp_path / "merged", scale=scale)
    source = find_model(folder / "base", name="m", deltas=deltas, scale=scale)
    state = {name: source.read(name) for name in source.checkpoint.specs}
    assert same_bits(state, load(tmp_path / "merged"))
    merged = find_model(tmp_path / "merged", name="m")
    assert run([source], test_set).records == run([merged], test_set).records


def test_a_bare_file_takes_its_config_from_a_folder(
    folder: Path, test_set: TestSet, tmp_path: Path, base: ModelSource
) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(folder / "base" / "model.safetensors"), bare)
    source = find_model(bare, name="base", config_dir=folder / "base")
    assert source.identity() == base.identity()
    assert run([source], test_set).records == run([base], test_set).records
    with pytest.raises(UnreadableFile, match=r"holds no config\.json.*--config"):
        find_model(bare)


def test_identity_is_of_weights_deltas_and_scale(folder: Path) -> None:
    def identity(name: str = "base", deltas: tuple[str, ...] = (), scale: float = 1.0) -> str:
        paths = [folder / delta for delta in deltas]
        return find_model(folder / name, deltas=paths, scale=scale).identity()

    found = [identity(), identity("ca"), identity(deltas=("ca.delta",)),
             identity(deltas=("ca.delta",), scale=0.5), identity(deltas=("de.delta",))]  # fmt: skip
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["base", "delta"])
def test_a_number_that_is_none_is_blamed_on_its_file(
    folder: Path, tmp_path: Path, place: str, bad: float
) -> None:
    name = "model.decoder.layers.1.fc1.weight"
    make_whisper(tmp_path / "base")
    (tmp_path / "ca").mkdir()
    spoilt = (folder / "base" if place == "base" else folder / "ca") / "model.safetensors"
    state = load_file(spoilt)
    state[name][3, 4] = bad
    path = tmp_path / ("base" if place == "base" else "ca") / "model.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    deltas = [] if place == "base" else [tmp_path / "ca"]
    source = find_model(tmp_path / "base", deltas=deltas)
    with pytest.raises(NonFinite, match=rf"/{'base' if place == 'base' else 'ca'}: '{name}' holds"):
        source.open(torch.float32, "cpu")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("float16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_dtypes_have_short_names(name: str, dtype: torch.dtype) -> None:
    assert parse_speech_dtype(name) == dtype


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "mps", "float32"),
        ("auto", "cuda", "float16"),
        ("bf16", "cuda", "bfloat16"),
        ("float32", "cuda", "float32"),
    ],
)
def test_auto_is_the_devices_dtype(
    monkeypatch: pytest.MonkeyPatch, name: str, device: str, expected: str
) -> None:
    monkeypatch.setattr(source_module, "resolve_device", torch.device)
    assert compute_dtype(name, device) == expected


@pytest.mark.parametrize("target", ["model", "delta", "hypotheses"])
def test_inputs_are_never_written(
    folder: Path, test_set: TestSet, tmp_path: Path, target: str
) -> None:
    make_whisper(tmp_path / "base")
    delta = tmp_path / "ca.delta"
    delta.write_bytes((folder / "ca.delta").read_bytes())
    source = find_model(tmp_path / "base", name="m", deltas=[delta])
    file = tmp_path / "h.jsonl"
    run([source], test_set, hypotheses=file)
    output = {"model": tmp_path / "base" / "model.safetensors", "delta": delta,
              "hypotheses": file}[target]  # fmt: skip
    before = output.read_bytes()
    with pytest.raises(OutputFault, match="is or holds the input"):
        run([source], test_set, hypotheses=file, output=output, force=True)
    assert output.read_bytes() == before


# --- transcribe -----------------------------------------------------------------------------------


def test_a_long_clip_is_heard_to_its_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    long = make_clip(tmp_path / "long.wav", 5, 3.0)
    samples, rate = soundfile.read(long, dtype="float32")
    start = tmp_path / "start.wav"
    soundfile.write(start, samples[: 2 * rate], rate, subtype="FLOAT")
    heard, whole = transcribe("base", [long, start], language="Catalan", task="transcribe", beam=2)
    assert len(heard.text) > len(whole.text) > 0
    assert (heard.heard, heard.seconds, heard.untimed) == (3.0, 3.0, 2.0)
    assert (whole.heard, whole.seconds) == (2.0, 2.0)
    assert (heard.audio, heard.model) == (long, "base")
    assert any("is cut every 2 s" in warning for warning in heard.warnings)
    assert not any("is cut every" in warning for warning in whole.warnings)


def test_a_clip_that_was_cut_short_is_a_warning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    clips = [make_clip(tmp_path / name, 5, 1.0) for name in ("cut.wav", "whole.wav")]
    clips[0].write_bytes(clips[0].read_bytes()[: clips[0].stat().st_size // 2])
    cut, whole = transcribe("base", clips, language="ca", beam=1)
    assert (cut.ends_early, whole.ends_early) == (True, False)
    assert f"{clips[0]} is truncated: only the part that it holds is transcribed." in cut.warnings
    assert not any("cut short" in warning for warning in whole.warnings)


def test_models_of_one_extractor_share_the_features(
    folder: Path, test_set: TestSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def record(row: Any) -> Any:
        read.append(row.id)
        return audio_of(row)

    monkeypatch.setattr("lorsmerge_cli.speech.features.audio_of", record)
    names = [row.id for row in test_set.utterances]
    models = [find_model(folder / name, name=name) for name in ("base", "ca")]
    together = run(models, test_set)
    assert sorted(read) == sorted(names)
    for name in ("base", "ca"):
        on = together.models[name]["decoded_on"]
        assert on | {"threads": 0} == {
            "device": "cpu", "threads": 0, "dtype": "float32", "batch_size": 64, "processes": 1,
        }  # fmt: skip
    other = tmp_path / "other"
    shutil.copytree(folder / "ca", other)
    config = json.loads((other / "processor_config.json").read_text())
    config["feature_extractor"]["dither"] = 0.01
    (other / "processor_config.json").write_text(json.dumps(config))
    read.clear()
    run([models[0], find_model(other, name="other")], test_set)
    assert sorted(read) == sorted(2 * names)
    assert texts(together) == texts(run(models[:1], test_set)) | texts(run(models[1:], test_set))


def test_shards_are_joined_to_the_scores_of_the_whole(
    base: ModelSource, test_set: TestSet, folder: Path, tmp_path: Path
) -> None:
    whole = run([base], test_set)
    files = []
    for part in (1, 2, 3):
        path = folder / "data" / "test.jsonl"
        shard, *_ = read_test_set("test", path, 2.0, shard=(part, 3), split=None, format=None)
        files.append(tmp_path / f"{part}.jsonl")
        output = tmp_path / f"{part}.json"
        run([base], shard, hypotheses=files[-1], output=output)
        count = len(shard.utterances)
        assert read_results(output).partial == {"test": (count, len(test_set.utterances))}
    joined = rescore(files, scoring=SCORING)
    assert joined.warnings == ()
    assert texts(joined) == texts(whole)
    scores = [{(r.language, r.task): r.scores for r in found.records} for found in (joined, whole)]
    assert scores[0] == scores[1]
    assert "6 of 10 utterances" in rescore(files[1:], scoring=SCORING).warnings[0]
    with pytest.raises(Mismatch, match=r"in lines 1\.jsonl:1, 1\.jsonl:1"):
        rescore([files[0], files[0]], scoring=SCORING)


def test_segments_are_of_words_as_they_stand(
    base: ModelSource, folder: Path, test_set: TestSet
) -> None:
    models = [base, find_model(folder / "ca", name="ca")]
    for normalisation, asked, expected in (
        ("auto", ("cer",), {"WER": True, "CER": False, "BLEU": False}),
        ("leaderboard", (), {"WER": False, "CER": False, "BLEU": False}),
    ):
        scoring = replace(SCORING, normalisation=normalisation, metrics=asked)
        report = run(models, test_set, scoring=scoring, compared=("base", "ca"))
        found = {metric.name: pairs is not None for _, _, metric, _, pairs in report.comparisons}
        assert found == expected
        (entry, *_) = report.to_dict()["comparisons"]
        assert ("mapsswe" in entry) == expected[entry["metric"]]
