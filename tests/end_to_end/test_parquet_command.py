"""The commands on Parquet files with audio in a column: as on the audio's own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from safetensors.torch import load_file
from speech_models import make_test_set, make_whisper

FINETUNE = "lorsmerge finetune base --lr 1e-3 --effective-batch 8 --epochs 1 --device cpu"
EVAL = "lorsmerge eval {} --data test={} --device cpu --beam 2 --samples 20"


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, train.jsonl and dev.jsonl, and both with their audio as hub/data/*.parquet."""
    folder = tmp_path_factory.mktemp("parquet")
    make_whisper(folder / "base", spells=True)
    (folder / "hub" / "data").mkdir(parents=True)
    for seed, (name, split) in enumerate({"train": "train", "dev": "validation"}.items(), 1):
        lines = make_test_set(folder / name, count=16, seed=seed).read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        clips = [folder / name / row.pop("audio_filepath") for row in rows]
        table = pyarrow.Table.from_pylist(
            [{"audio": {"bytes": clip.read_bytes(), "path": clip.name}} | row
             for clip, row in zip(clips, rows, strict=True)]
        )  # fmt: skip
        path = folder / "hub" / "data" / f"{split}-00000-of-00001.parquet"
        parquet.write_table(table, path, row_group_size=5)
        (folder / name / "test.jsonl").rename(folder / name / f"{name}.jsonl")
    return folder


def test_a_fine_tune_is_that_on_files(files: Path, succeed: Callable) -> None:
    succeed(f"{FINETUNE} --data train/train.jsonl --dev dev/dev.jsonl -o wanted")
    succeed(f"{FINETUNE} --data hub -o out")  # its dev split is the dev set
    ours, wanted = (load_file(Path(name) / "model.safetensors") for name in ("out", "wanted"))
    assert all(tensor.equal(wanted[name]) for name, tensor in ours.items())
    runs = [json.loads(Path(name, "run.json").read_text()) for name in ("out", "wanted")]
    assert runs[0]["after"] == runs[1]["after"]
    assert runs[0]["digests"] == runs[1]["digests"]
    ended = succeed(EVAL.format("base out", "train/train.jsonl") + " -o r.json")
    assert "16 of the 16 utterances of test are in the training data of out" in " ".join(
        ended.err.split()
    )


def test_scores_are_those_of_files(files: Path, succeed: Callable) -> None:
    succeed(EVAL.format("base", "dev/dev.jsonl") + " -o wanted.json --hypotheses h.jsonl")
    before = Path("h.jsonl").read_bytes()
    # the same audio, so that nothing is decoded again
    succeed(EVAL.format("base", "hub") + " --split dev -o r.json --hypotheses h.jsonl")
    assert Path("h.jsonl").read_bytes() == before
    succeed(EVAL.format("base", "hub") + " --split dev -o again.json")
    wanted, found, again = (
        json.loads(Path(name).read_text())["records"]
        for name in ("wanted.json", "r.json", "again.json")
    )
    assert found == again == wanted


def test_data_shows_them_and_writes_their_audio(files: Path, succeed: Callable) -> None:
    succeed("lorsmerge data hub --split train --check-audio -o t.jsonl")
    ended = succeed("lorsmerge data hub --split train --split dev -o all.jsonl --json")
    document = json.loads(ended.out)
    assert document["utterances"] == 32
    assert document["audio"] == "all.jsonl.audio"
    assert len([*Path("t.jsonl.audio").glob("*.wav")]) == 16
    succeed(f"{FINETUNE} --data t.jsonl --dev dev/dev.jsonl -o out")
