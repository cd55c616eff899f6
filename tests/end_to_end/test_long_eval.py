"""`lorsmerge eval --long` and `--language auto`, as a user types them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
from speech_models import make_clip, make_tuned, make_whisper

from lorsmerge_cli import evaluate, transcribe
from lorsmerge_cli.operations.eval import Hearing
from lorsmerge_cli.results.document import read_results

QUICK = " --device cpu --beam 1 --samples 20"


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timed/, its fine-tune ca/, untimed/, and talks.jsonl: recordings longer than the window of 2 s."""
    folder = tmp_path_factory.mktemp("speech")
    make_whisper(folder / "timed", times=True, seed=3)
    make_tuned(folder / "timed", folder / "ca", seed=1, step=0.3)
    make_whisper(folder / "untimed")
    rows = []
    for number, seconds in enumerate((5.3, 1.4, 3.1, 6.2)):
        clip = make_clip(folder / f"{number}.wav", number, seconds)
        rows.append(
            {"id": f"t{number}", "audio_filepath": clip.name, "text": "the red house birds",
             "source_lang": ("ca", "de")[number % 2], "taskname": "asr", "speaker": f"s{number}"}
        )  # fmt: skip
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def records(path: str = "r.json") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(Path(path).read_text())["records"]
    return found


def test_rows_longer_than_the_window_are_scored(
    files: Path, succeed: Callable, shell: Callable
) -> None:
    line = "lorsmerge eval timed ca --data talks.jsonl -o r.json --force" + QUICK
    assert "hear rows of any length with --long" in " ".join(shell(line).err.split())
    succeed(f"{line} --allow-missing")
    assert sum(len(record["rows"]) for record in records()) == 2  # one of four, by two models
    succeed(f"{line} --long")
    document = json.loads(Path("r.json").read_text())
    assert sum(len(record["rows"]) for record in document["records"]) == 8
    assert document["settings"]["decoding"]["long"] == (
        "best_of:5 temperatures:0,0.2,0.4,0.6,0.8,1 compression_ratio:2.4 logprob:-1.0 no_speech:0.6 "
        "condition:True timestamps:True seed:0"
    )
    said = {
        (record["model"], row["id"]): row["hypothesis"]
        for record in document["records"]
        for row in record["rows"]
    }
    (shown,) = transcribe("timed", "0.wav", language="ca", beam=1, device="cpu")
    assert said["timed", "t0"] == shown.text


def test_a_piece_of_a_recording(files: Path, succeed: Callable) -> None:
    samples, rate = soundfile.read("3.wav", dtype="float32")
    soundfile.write("piece.wav", samples[rate : 4 * rate], rate, subtype="FLOAT")
    row = {"text": "red", "source_lang": "ca", "taskname": "asr"}
    whole = row | {"id": "a", "audio_filepath": "piece.wav"}
    piece = row | {"id": "b", "audio_filepath": "3.wav", "offset": 1.0, "duration": 3.0}
    Path("two.jsonl").write_text(f"{json.dumps(whole)}\n{json.dumps(piece)}\n")
    succeed("lorsmerge eval timed --data two.jsonl --long -o r.json" + QUICK)
    (record,) = records()
    assert len({row["hypothesis"] for row in record["rows"]}) == 1
    assert [row["seconds"] for row in record["rows"]] == [3.0, 3.0]


def test_resuming_and_changed_settings(files: Path, succeed: Callable, shell: Callable) -> None:
    line = "lorsmerge eval timed --data talks.jsonl --hypotheses h.jsonl -o r.json --force" + QUICK
    succeed(f"{line} --long --language auto")
    first, lines = records(), Path("h.jsonl").read_text()
    succeed(f"{line} --long --language auto")
    assert (records(), Path("h.jsonl").read_text()) == (first, lines)
    refused = shell(f"{line} --long")
    assert refused.code == 1
    assert "were made differently" in " ".join(refused.err.split())
    assert records() == first


@pytest.mark.parametrize("long", ["", " --long"])
def test_the_language_is_identified_and_counted(files: Path, succeed: Callable, long: str) -> None:
    line = (
        f"lorsmerge eval timed --data talks.jsonl --language auto --allow-missing -o r.json{long}"
    )
    line += QUICK
    ended = succeed(line)
    for record in records():
        heard = Counter(row["identified"] for row in record["rows"])
        assert record["details"]["heard_as"] == dict(heard)
        assert set(heard) <= {"en", "ca", "de", "zh"}
        assert record["language"] in ("ca", "de")  # what the data says
    assert "language identification" in ended.out
    assert json.loads(Path("r.json").read_text())["settings"]["decoding"]["language"] == "auto"
    stored = read_results(Path("r.json"))
    assert all(row.identified for record in stored.records for row in record.rows)


def test_clips_in_the_language_that_was_identified(files: Path) -> None:
    """Texts are those of the language that each model hears, not of the one that the data names."""
    report = evaluate("timed", "talks.jsonl", language="auto", beam=1, device="cpu", long=True)
    rows = [row for record in report.records for row in record.rows]
    for row in rows:
        clip = f"{row.id[1:]}.wav"
        if row.seconds <= 2:
            continue
        (text,) = transcribe("timed", clip, language=row.identified, beam=1, device="cpu")
        assert row.hypothesis == text.text


def test_without_the_text_so_far(files: Path, succeed: Callable, shell: Callable) -> None:
    line = "lorsmerge eval timed --data talks.jsonl -o r.json --no-condition" + QUICK
    refused = shell(line)
    assert refused.code == 2
    assert "--no-condition has no effect on clips. Give --long as well" in " ".join(
        refused.err.split()
    )
    succeed(f"{line} --long")
    decoding = json.loads(Path("r.json").read_text())["settings"]["decoding"]
    assert "condition:False" in decoding["long"]


def test_a_model_without_timestamps_is_told(files: Path, succeed: Callable) -> None:
    ended = succeed("lorsmerge eval untimed --data talks.jsonl --long" + QUICK)
    assert "untimed has no timestamps in its vocabulary: recordings are cut every 2 s" in " ".join(
        ended.err.split()
    )


def test_results_without_the_options_are_as_before(files: Path, succeed: Callable) -> None:
    succeed("lorsmerge eval timed --data talks.jsonl -o r.json --allow-missing" + QUICK)
    document = json.loads(Path("r.json").read_text())
    assert not {"long", "language"} & set(document["settings"]["decoding"])
    for record in document["records"]:
        assert "heard_as" not in record["details"]
        assert all("identified" not in row for row in record["rows"])
        assert "timestamps" not in record["details"]
        new = {"unheard", "segments", "heard_segments"}
        assert all(not new & row.keys() for row in record["rows"])


def test_windows_with_sound_that_got_no_text_are_told(files: Path, succeed: Callable) -> None:
    """Hypotheses of a model that falls silent: as an earlier run left them, which this one resumes."""
    line = "lorsmerge eval timed --data talks.jsonl --long --hypotheses h.jsonl -o r.json --force"
    ended = succeed(line + QUICK)
    assert "got no text" not in ended.err
    rows = [json.loads(line) for line in Path("h.jsonl").read_text().splitlines()]
    assert all(row["unheard"][0] == 0 for row in rows)
    rows[0]["unheard"] = [3, 5]
    Path("h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = succeed(line + QUICK)
    assert (
        "timed: 3 of 5 windows that have sound got no text, in 1 recordings that are mostly without. "
        "Try --no-condition: the text so far may silence a model that was trained without."
    ) in " ".join(ended.err.split())
    assert "unheard: hypotheses of recordings with words, most of whose" in " ".join(
        ended.out.split()
    )
    assert sum(record["details"]["unheard"] for record in records()) == 1
    stored = read_results(Path("r.json"))
    assert (3, 5) in [row.unheard for record in stored.records for row in record.rows]


def test_the_times_of_segments(files: Path, succeed: Callable) -> None:
    row = json.loads(Path("talks.jsonl").read_text().splitlines()[0])
    parts = [{"start": 0.5, "end": 2.0, "text": "the red"}, {"start": 2.5, "end": 5.0, "text": "house birds"}]  # fmt: skip
    Path("timed.jsonl").write_text(json.dumps(row | {"segments": parts}) + "\n")
    line = "lorsmerge eval timed --data timed.jsonl --long -o r.json --force" + QUICK
    ended = succeed(f"{line} --hypotheses h.jsonl")
    (record,) = records()
    (stored,) = record["rows"]
    assert stored["segments"] == [[0.5, 2.0, "the red"], [2.5, 5.0, "house birds"]]
    succeed("lorsmerge transcribe timed -a 0.wav -o t.json --language ca --device cpu --beam 1")
    heard = json.loads(Path("t.json").read_text())["segments"]
    assert stored["heard_segments"] == [
        [pytest.approx(part["start"], abs=6e-4), pytest.approx(part["end"], abs=6e-4), part["text"].strip()]
        for part in heard
    ]  # fmt: skip
    assert "|long:best_of:5 " in json.loads(Path("r.json").read_text())["settings"]["signature"]
    found = record["details"]["timestamps"]
    assert (found["recordings"], found["segments"], found["heard"]) == (1, 2, len(heard))
    assert "timestamps" in ended.out
    assert "within 0.2 s %" in ended.out
    succeed("lorsmerge eval --score-only h.jsonl -o again.json")
    succeed(f"{line} --hypotheses h.jsonl")
    for path in ("again.json", "r.json"):
        assert records(path)[0]["details"]["timestamps"] == found
    ended = succeed("lorsmerge report r.json -o report/")
    assert "Timestamps" in ended.out
    (table,) = (t for t in json.loads(Path("report/report.json").read_text())["tables"] if t["name"] == "timestamps")  # fmt: skip
    assert [cell["text"] for cell in table["rows"][0][2]][:4] == ["1", "2", str(len(heard)), str(found["matched"])]  # fmt: skip


def test_a_model_without_timestamps_is_not_scored_by_them(files: Path, succeed: Callable) -> None:
    row = json.loads(Path("talks.jsonl").read_text().splitlines()[0])
    parts = [{"start": 0.5, "end": 2.0, "text": "the red house birds"}]
    Path("timed.jsonl").write_text(json.dumps(row | {"segments": parts}) + "\n")
    succeed(
        "lorsmerge eval untimed --data timed.jsonl --long -o r.json --hypotheses h.jsonl" + QUICK
    )
    (record,) = records()
    assert "timestamps" not in record["details"]
    assert not {"segments", "heard_segments"} & record["rows"][0].keys()


def test_ctranslate2_hears_recordings(
    files: Path, succeed: Callable, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for samples: no text fails here. Each model has its own list of tokens that begin no text."""
    pytest.importorskip("ctranslate2")
    shutil.copytree("timed", "other")
    generation = json.loads(Path("other/generation_config.json").read_text())
    first = generation["no_timestamps_token_id"] + 1
    generation["begin_suppress_tokens"] = [first + number for number in range(30)]
    Path("other/generation_config.json").write_text(json.dumps(generation))
    usual = Hearing.settings
    monkeypatch.setattr(
        Hearing,
        "settings",
        lambda *given: replace(usual(*given), logprob=-1e9, temperatures=(0.0,)),
    )
    line = "lorsmerge eval timed --data talks.jsonl --allow-missing --long" + QUICK
    for engine in ("torch", "ct2"):
        succeed(f"{line.replace('timed', 'timed other')} --engine {engine} -o {engine}.json")
    ours, theirs = (records(f"{engine}.json") for engine in ("torch", "ct2"))
    texts = {
        model: [row["hypothesis"] for r in ours if r["model"] == model for row in r["rows"]]
        for model in ("timed", "other")
    }
    assert any(texts["timed"])
    assert texts["timed"] != texts["other"]
    for one, other in zip(ours, theirs, strict=True):
        assert one["rows"] == other["rows"]
    ended = shell(f"{line} --engine ct2 --language auto")
    assert ended.code == 2
    assert "for English-only by its vocabulary, and identifies no language" in " ".join(
        ended.err.split()
    )
