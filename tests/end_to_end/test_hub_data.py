"""The commands on data sets of the Hub: as on the same audio in files here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_data import AUDIO, add_set, audio, card, fleurs_files, table
from hub_server import Hub
from huggingface_hub import constants
from safetensors.torch import load_file
from speech_models import make_test_set, make_whisper

FEATURES = {
    "id": "string", "audio": AUDIO, "text": "string", "source_lang": "string", "taskname": "string",
    "speaker": "string",
}  # fmt: skip
FINETUNE = "lorsmerge finetune base --lr 1e-3 --effective-batch 8 --epochs 1 --device cpu"
EVAL = "lorsmerge eval base --device cpu --beam 2 --samples 20"
FLEURS = "hub:google/fleurs:ca_es:test"


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and train/train.jsonl, dev/dev.jsonl with their audio."""
    folder = tmp_path_factory.mktemp("hub")
    make_whisper(folder / "base", spells=True)
    for seed, name in enumerate(("train", "dev"), 1):
        make_test_set(folder / name, count=12, seed=seed).rename(folder / name / f"{name}.jsonl")
    return folder


@pytest.fixture
def stocked(files: Path, set_hub: Hub) -> Hub:
    """org/speech has the rows of the two manifests, and google/fleurs is like FLEURS."""
    uploaded: dict[str, str | bytes] = {"README.md": card({"mixed": ("train", "validation")})}
    for name, split in {"train": "train", "dev": "validation"}.items():
        rows = []
        for line in (files / name / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            clip = files / name / row.pop("audio_filepath")
            rows.append(row | {"audio": {"bytes": clip.read_bytes(), "path": clip.name}})
        uploaded[f"mixed/{split}-00000-of-00001.parquet"] = table(rows, FEATURES, group=5)
    add_set(set_hub, "org/speech", uploaded)
    add_set(set_hub, "google/fleurs", fleurs_files())
    return set_hub


def commit_of(hub: Hub, name: str) -> str:
    return hub.repos[f"datasets/{name}"].refs["main"]


def read_json(path: str) -> Any:
    return json.loads(Path(path).read_text())


def test_a_fine_tune_is_that_on_files(stocked: Hub, succeed: Callable) -> None:
    succeed(f"{FINETUNE} --data train/train.jsonl --dev dev/dev.jsonl -o wanted")
    succeed(f"{FINETUNE} --data hub:org/speech:mixed -o out")  # its validation split is the dev set
    ours, wanted = (load_file(Path(name) / "model.safetensors") for name in ("out", "wanted"))
    assert all(tensor.equal(wanted[name]) for name, tensor in ours.items())
    run = read_json("out/run.json")
    assert run["digests"] == read_json("wanted/run.json")["digests"]
    commit = commit_of(stocked, "org/speech")
    assert run["hub"] == [f"hub:org/speech@{commit}:mixed:train:audio=audio,text=text"]
    succeed("lorsmerge push out you/out --dry-run")


def test_scores_are_those_of_files_and_name_the_commit(stocked: Hub, succeed: Callable) -> None:
    succeed(f"{EVAL} --data dev/dev.jsonl -o wanted.json --hypotheses h.jsonl")
    before = Path("h.jsonl").read_bytes()
    # the same audio, so that nothing is decoded again
    ref = "dev.jsonl=hub:org/speech:mixed:dev"
    succeed(f"{EVAL} --data {ref} -o r.json --hypotheses h.jsonl")
    assert Path("h.jsonl").read_bytes() == before
    found, wanted = read_json("r.json"), read_json("wanted.json")
    assert found["records"] == wanted["records"]
    pinned = f"hub:org/speech@{commit_of(stocked, 'org/speech')}:mixed:validation"
    assert found["settings"]["hub"] == {"dev.jsonl": f"{pinned}:audio=audio,text=text"}
    assert "hub" not in wanted["settings"]
    succeed("lorsmerge report r.json -o report.html")
    succeed(f"{EVAL} --data {pinned}:text=text -o pinned.json")
    assert read_json("pinned.json")["records"][0]["scores"] == wanted["records"][0]["scores"]


def test_fleurs_in_one_command(stocked: Hub, succeed: Callable) -> None:
    ended = succeed(
        f"{EVAL} --data {FLEURS} --data zh=hub:google/fleurs:cmn_hans_cn:test -o r.json"
    )
    assert "The texts of google/fleurs are those of its column raw_transcription" in " ".join(
        ended.err.split()
    )
    sets = {
        (row["dataset"], row["language"], row["task"]) for row in read_json("r.json")["records"]
    }
    assert sets == {("fleurs:ca_es:test", "ca", "asr"), ("zh", "zh", "asr")}
    succeed(f"{EVAL} --data {FLEURS}:text=raw_transcription --task st -o st.json")
    (record,) = read_json("st.json")["records"]
    assert (record["task"], len(record["rows"])) == ("st", 4)
    assert record["dataset"] == "fleurs:ca_es:test:text=raw_transcription"


def test_data_shows_them_and_writes_their_audio(stocked: Hub, succeed: Callable) -> None:
    ended = succeed("lorsmerge data hub:google/fleurs:ca_es --split train --split test --json")
    assert json.loads(ended.out)["utterances"] == 12
    assert (
        "of hub:google/fleurs:ca_es (test) are in hub:google/fleurs:ca_es (train) too"
        in " ".join(ended.err.split())
    )
    succeed(f"lorsmerge data {FLEURS} --check-audio -o t.jsonl")
    assert len([*Path("t.jsonl.audio").glob("*.wav")]) == 6
    ended = succeed("lorsmerge data t.jsonl --json")
    assert json.loads(ended.out)["groups"][0]["language"] == "ca"


def test_search_stats_and_transcribe_take_them(stocked: Hub, succeed: Callable) -> None:
    succeed(
        "lorsmerge stats base --data hub:org/speech:mixed --split train -o s.stats --device cpu"
    )
    succeed(f"{FINETUNE} --data train/train.jsonl --delta ca.delta -o ft")
    data = "--data hub:org/speech:mixed:validation --test hub:org/speech:mixed:train"
    ended = succeed(
        f"lorsmerge search base ca.delta {data} --trials 2 --svp 0.5 --mp 0.5 --device cpu -o best.toml"
    )
    assert "best.toml" in ended.out + ended.err
    succeed(
        "lorsmerge transcribe --data hub:google/fleurs:ca_es:test --teacher base -o p.jsonl "
        "--device cpu --keep-flawed"
    )
    pinned = f"hub:google/fleurs@{commit_of(stocked, 'google/fleurs')}:ca_es:test:audio=audio"
    assert read_json("p.jsonl.run.json")["hub"][0].startswith(pinned)
    assert len([*Path("p.jsonl.audio").glob("*.wav")]) == 6


def test_faults_are_told_before_a_model_is_looked_for(stocked: Hub, shell: Callable) -> None:
    for reference, code, words in (
        ("hub:google/fleurs:ca_ex:test", 2, "Did you mean 'ca_es'?"),
        ("hub:google/fleurs:ca_es:tset", 1, "It has: train, validation, test."),
        ("hub:google/flers:ca_es:test", 1, "There is no data set google/flers"),
        ("hub:google:ca_es", 2, "hub:ORG/NAME[@REVISION]"),
        ("hub:google/fleurs:ca_es:test:text=txet", 2, "has no column 'txet' for text="),
    ):
        for line in (f"{EVAL} --data {reference} -o r.json", f"lorsmerge data {reference}"):
            ended = shell(line)
            assert (ended.code, words in " ".join(ended.err.split())) == (code, True), ended.err
    assert not Path("r.json").exists()


def test_a_processes_own_words_alone_reach_the_screen(
    stocked: Hub, process: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    ended = process(f"lorsmerge data {FLEURS}:text=transcription --json")
    assert json.loads(ended.out)["utterances"] == 6
    assert ended.err == ""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = process(f"lorsmerge data {FLEURS}:text=transcription --json")
    assert (again.out, again.err) == (ended.out, "")
    assert constants.HF_HUB_OFFLINE is False
    gone = process("lorsmerge data hub:google/fleurs:en_us:test")
    assert gone.code == 1
    assert "HF_HUB_OFFLINE is set" in gone.err
    assert "Traceback" not in gone.err


def test_a_sound_of_an_unknown_container(stocked: Hub, shell: Callable) -> None:
    rows = [{"audio": audio(n), "text": "x"} for n in range(3)]
    rows.append({"audio": {"bytes": b"\x1aE\xdf\xa3 webm", "path": "a.webm"}, "text": "x"})
    add_set(stocked, "org/webm", {"test.parquet": table(rows, {"audio": AUDIO, "text": "string"})})
    ended = shell(f"{EVAL} --data hub:org/webm::test --language ca -o r.json")
    assert ended.code == 1
    told = " ".join(ended.err.split())
    assert (
        "1 of 4 rows cannot be scored (1 unreadable audio), the first hub:org/webm::test, row 3"
        in told
    )


def test_streamed_data_are_the_first_rows_in_all_commands(stocked: Hub, succeed: Callable) -> None:
    def fetched() -> list[str]:
        calls = [call for call in stocked.seen("GET", "parquet") if "range" not in call.headers]
        return [call.path for call in calls if call.path.endswith(".parquet")]

    train = "--data hub:org/speech:mixed:train --hours 0.0005 --streaming"
    succeed(
        f"{FINETUNE} {train} --dev hub:org/speech:mixed:dev --dev-hours 0.001 -o ft --delta d.delta"
    )
    run = read_json("ft/run.json")
    assert ":mixed:train:first=0.0005," in run["hub"][0]
    assert run["selected"] == ["a place in the first 0.0005 hours of the split"]
    succeed(f"lorsmerge stats base {train} --device cpu -o s.stats")
    succeed(
        f"lorsmerge search base d.delta {train} --test hub:org/speech:mixed:validation --trials 2 "
        "--svp 0.5 --mp 0.5 --device cpu -o best.toml"
    )
    succeed(f"lorsmerge transcribe {train} --teacher base -o p.jsonl --device cpu --keep-flawed")
    assert ":first=0.0005," in read_json("p.jsonl.run.json")["hub"][0]
    ended = succeed("lorsmerge data hub:org/speech:mixed:train --hours 0.0005 --streaming --json")
    assert 0.0005 <= json.loads(ended.out)["hours"] < 0.0015
    assert "is read in the split's order until there are 0.0005 hours" in " ".join(
        ended.err.split()
    )
    assert fetched() == []


def test_report_does_not_take_first_rows_for_a_choice(
    stocked: Hub, succeed: Callable, shell: Callable
) -> None:
    data = "--data ca=hub:org/speech:mixed:train --hours 0.0008"
    succeed(f"{EVAL} {data} --streaming -o first.json")
    succeed(f"lorsmerge eval other=base --device cpu --beam 2 --samples 20 {data} -o chosen.json")
    found = read_json("first.json")
    assert found["settings"]["selected"] == {
        "ca": ["a place in the first 0.0008 hours of the split"]
    }
    ended = shell("lorsmerge report first.json chosen.json -o r.html")
    assert ended.code == 1
    assert "with a place in the first 0.0008 hours of the split" in " ".join(ended.err.split())
    succeed("lorsmerge report first.json -o r.html")
    succeed(f"{EVAL} --data hub:org/speech:mixed:train --hours 0.0008 --streaming -o named.json")
    assert read_json("named.json")["records"][0]["dataset"] == "speech:mixed:train:first=0.0008"
