"""Clips that turn out to be damaged, as `finetune` and `eval` meet them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from speech_models import make_test_set, make_whisper

from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.operations.finetune import run as operation

LINE = "lorsmerge finetune base --data train.jsonl --dev dev.jsonl -o out --lr 1e-3 --effective-batch 8"
EVAL = "lorsmerge eval base --data dev.jsonl --samples 20 --device cpu --beam 1 -o results.json"
WORK, INTERRUPTED = 1, 130
NAN = "audio with samples that are no numbers"
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad_audio")
    make_whisper(folder / "base", spells=True)
    make_test_set(folder / "a", count=24, seed=1)
    make_test_set(folder / "b", count=10, seed=2)
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `base`, `train.jsonl` of 24 rows, `dev.jsonl` of 10, and their audio in it."""
    (tmp_path / "base").symlink_to(prepared / "base")
    for name, where in (("train", "a"), ("dev", "b")):
        shutil.copytree(prepared / where, tmp_path / where)
        text = (tmp_path / where / "test.jsonl").read_text()
        text = text.replace('"audio_filepath": "', f'"audio_filepath": "{where}/')
        (tmp_path / f"{name}.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spoil(name: str) -> None:
    """Make the last samples of a clip NaN, which its header does not tell."""
    samples, rate = soundfile.read(name, dtype="float32")
    samples[-5:] = np.nan
    soundfile.write(name, samples, rate, subtype="FLOAT")


def damage(name: str) -> str:
    """Make a FLAC of a clip and put zeros into its middle."""
    samples, rate = soundfile.read(name, dtype="float32")
    path = Path(name).with_suffix(".flac")
    soundfile.write(path, samples, rate)
    raw = path.read_bytes()
    middle = len(raw) // 2
    path.write_bytes(raw[:middle] + bytes(1000) + raw[middle + 1000 :])
    return str(path)


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def write_rows(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def without(name: str, *ids: str) -> None:
    write_rows(name, [row for row in rows_of(name) if row["id"] not in ids])


def run_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "run.json").read_text())
    return found


def same_weights(a: str, b: str) -> bool:
    one, other = (load_file(Path(name) / "model.safetensors") for name in (a, b))
    return all(torch.equal(value, other[name]) for name, value in one.items())


# --- finetune -------------------------------------------------------------------------------------


def test_a_clip_that_is_damaged_is_skipped_and_named(here: Path, succeed: Command) -> None:
    spoil("a/3.wav")
    rows = rows_of("train.jsonl")
    rows[7]["audio_filepath"] = damage("a/7.wav")
    write_rows("train.jsonl", rows)
    ended = succeed(f"{LINE} --epochs 2")
    assert ended.err.count(f"skipped u3: {NAN} (a/3.wav has samples") == 1
    assert ended.err.count("skipped u7: unreadable audio (a/7.flac cannot be read as audio") == 1
    said = " ".join(ended.err.split())
    assert re.search(
        r"2 utterances were skipped \(1 .*1 .*\): 'u\d', 'u\d'; all are in run.json", said
    )
    run = run_of("out")
    assert sorted(run["skipped"], key=lambda row: row["id"]) == [
        {"id": "u3", "audio": "3.wav", "reason": NAN},
        {"id": "u7", "audio": "7.flac", "reason": "unreadable audio"},
    ]
    assert not Path("out.training").exists()


def test_a_run_without_bad_clips_says_so(here: Path, succeed: Command) -> None:
    ended = succeed(f"{LINE} --steps 1 --json")
    assert "skipped" not in ended.err
    assert json.loads(ended.out)["skipped"] == run_of("out")["skipped"] == []


def test_bad_clips_of_the_dev_set_are_dropped_before(here: Path, succeed: Command) -> None:
    spoil("b/2.wav")
    ended = succeed(f"{LINE} --steps 1")
    assert f"1 of 10 rows are dropped (1 {NAN})" in ended.err
    assert run_of("out")["dev"]["dropped"] == {NAN: 1}


def test_much_bad_audio_ends_the_run(here: Path, shell: Command) -> None:
    for number in range(8):
        spoil(f"a/{number}.wav")
    ended = shell(f"{LINE} --epochs 2")
    assert ended.code == WORK
    said = " ".join(ended.err.split())
    assert f"8 of the first 24 utterances of the training data had to be skipped (8 {NAN})" in said
    assert "lorsmerge data --check-audio" in said
    assert not Path("out").exists()
    again = shell(f"{LINE} --epochs 2 --resume")
    assert again.code == WORK
    check = shell("lorsmerge data train.jsonl --check-audio -o good.jsonl")
    assert check.code == WORK
    assert shell(f"{LINE.replace('train.jsonl', 'good.jsonl')} --epochs 2 --force").code == 0


@pytest.fixture
def interrupted(shell: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Stop a run after its fourth step, when it has seen every row, as a signal does."""

    def run(line: str) -> None:
        asked = iter(range(1, 100))

        @contextmanager
        def stoppable() -> Iterator[Callable[[], bool]]:
            yield lambda: next(asked) == 4

        with monkeypatch.context() as patch:
            patch.setattr(operation, "_stoppable", stoppable)
            assert shell(line).code == INTERRUPTED
        assert not Path("out").exists()
        assert len(Path("out.training/skipped.jsonl").read_text().splitlines()) == 2

    return run


def remove_rows() -> None:
    without("train.jsonl", "u3", "u11")


def remove_a_row_and_a_file() -> None:
    without("train.jsonl", "u11")
    Path("a/3.wav").unlink()


def mend_one_with_another_length() -> None:
    without("train.jsonl", "u11")
    shutil.copy("a/4.wav", "a/3.wav")


@pytest.mark.parametrize(
    "remove", [None, remove_rows, remove_a_row_and_a_file, mend_one_with_another_length]
)
def test_a_run_is_resumed_without_what_it_had_skipped(
    here: Path, succeed: Command, interrupted: Command, remove: Callable[[], None] | None
) -> None:
    line = f"{LINE} --epochs 3 --spec-augment"
    for number in (3, 11):
        spoil(f"a/{number}.wav")
    succeed(f"{line.replace('-o out', '-o whole')}")
    interrupted(line)
    if remove:
        remove()
    ended = succeed(f"{line} --resume")
    gone = 2 if remove else 0
    assert (f"{gone} rows that the run had skipped are gone" in ended.err) == bool(remove)
    assert same_weights("out", "whole")
    out, whole = run_of("out"), run_of("whole")
    assert out["epochs"] == whole["epochs"]
    assert out["skipped"] == whole["skipped"]
    assert out["train"]["sha256"] == whole["train"]["sha256"]


def test_a_subset_is_resumed_without_what_it_had_skipped(
    here: Path, succeed: Command, interrupted: Command
) -> None:
    """Where other rows take the place of those removed."""
    line = f"{LINE} --epochs 6 --hours 0.004"
    taken = [row.id for row in load_data([Path("train.jsonl")], hours=0.004).utterances]
    assert 8 < len(taken) < 24
    for name in taken[:2]:
        spoil(f"a/{name[1:]}.wav")
    succeed(f"{line.replace('-o out', '-o whole')}")
    interrupted(line)
    without("train.jsonl", *taken[:2])
    now = [row.id for row in load_data([Path("train.jsonl")], hours=0.004).utterances]
    assert set(now) - set(taken)
    ended = succeed(f"{line} --resume")
    assert "2 rows that the run had skipped are gone" in ended.err
    assert same_weights("out", "whole")


@pytest.mark.parametrize("change", ["another row", "another text", "a row more"])
def test_other_changes_of_the_data_are_still_refused(
    here: Path, shell: Command, interrupted: Command, change: str
) -> None:
    line = f"{LINE} --epochs 3"
    for number in (3, 11):
        spoil(f"a/{number}.wav")
    interrupted(line)
    without("train.jsonl", "u3", *(["u5"] if change == "another row" else []))
    rows = rows_of("train.jsonl")
    if change == "another text":
        rows[0]["text"] = "the red house"
    if change == "a row more":
        rows.append(rows[0] | {"id": "new"})
    write_rows("train.jsonl", rows)
    ended = shell(f"{line} --resume")
    assert ended.code == WORK
    assert "train sha256 was" in ended.err


def test_bad_rows_that_were_never_used_may_be_removed(
    here: Path, succeed: Command, interrupted: Command
) -> None:
    spoil("a/3.wav")
    spoil("a/11.wav")
    spoil("b/2.wav")
    rows = rows_of("train.jsonl")
    write_rows("train.jsonl", [*rows, rows[0] | {"id": "gone", "audio_filepath": "gone.wav"}])
    line = f"{LINE} --epochs 3"
    interrupted(line)
    write_rows("train.jsonl", rows)
    without("dev.jsonl", "u2")
    succeed(f"{line} --resume")


@pytest.mark.slow
def test_two_processes_skip_as_one(here: Path, succeed: Command) -> None:
    for number in (3, 11):
        spoil(f"a/{number}.wav")
    line = f"{LINE} --epochs 3 --batch-size 4"
    succeed(line)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lorsmerge_cli"]
    two = [sys.executable, *launcher, *line.replace("-o out", "-o two").split()[1:]]
    done = subprocess.run(two, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("skipped u3: ") == done.stderr.count("skipped u11: ") == 1
    a, b = run_of("out"), run_of("two")
    assert {row["id"] for row in b["skipped"]} == {row["id"] for row in a["skipped"]}
    losses = [[entry["loss"] for entry in run["losses"]] for run in (a, b)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_two_processes_end_together(here: Path) -> None:
    """Where one of them alone has met the last of too many, and where a step has no row at all."""
    for number in range(24):
        spoil(f"a/{number}.wav")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lorsmerge_cli"]
    done = subprocess.run(
        [sys.executable, *launcher, *LINE.split()[1:]], capture_output=True, encoding="utf-8",
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "24 of the first 24 utterances" in " ".join(done.stderr.split())


# --- eval -----------------------------------------------------------------------------------------


def test_one_damaged_clip_of_a_test_set_is_an_error_before_work(
    here: Path, shell: Command, succeed: Command
) -> None:
    rows = rows_of("dev.jsonl")
    rows[4]["audio_filepath"] = damage("b/4.wav")
    copies = [row | {"id": f"{row['id']}-{n}"} for n in range(5) for row in rows if row != rows[4]]
    write_rows("dev.jsonl", [*copies, rows[4]])
    spoil("b/2.wav")
    without("dev.jsonl", *(f"u2-{n}" for n in range(1, 5)))
    ended = shell(f"{EVAL} --hypotheses hyp.jsonl")
    said = " ".join(ended.err.split())
    assert ended.code == WORK
    assert f"dev.jsonl: 2 of 42 rows cannot be scored (1 {NAN}, 1 unreadable audio)" in said
    assert "--allow-missing" in said
    assert not Path("hyp.jsonl").exists()
    succeed(f"{EVAL} --allow-missing --hypotheses hyp.jsonl")
    results = json.loads(Path("results.json").read_text())
    assert results["settings"]["dropped"] == {"dev.jsonl": {NAN: 1, "unreadable audio": 1}}
    assert sum(record["utterances"] for record in results["records"]) == 40


def test_silence_is_scored_and_told(here: Path, succeed: Command) -> None:
    soundfile.write("b/2.wav", np.zeros(16_000), 16_000)
    ended = succeed(EVAL)
    assert "1 of 10 rows have a text and no sound, the first b/2.wav" in ended.err
    results = json.loads(Path("results.json").read_text())
    assert sum(record["utterances"] for record in results["records"]) == 10


@pytest.mark.parametrize("command", [EVAL, f"{LINE} --dry-run"])
def test_parts_are_refused_where_most_rows_are_such(
    here: Path, shell: Command, succeed: Command, command: str
) -> None:
    rows = rows_of("dev.jsonl")
    for row in rows:
        row["duration"] = soundfile.info(row["audio_filepath"]).duration / 60  # minutes
    write_rows("dev.jsonl", rows)
    ended = shell(command)
    assert ended.code == WORK
    said = " ".join(ended.err.split())
    assert "dev.jsonl: 10 of 10 rows use a part of their file, 2% of the audio" in said
    ended = succeed(f"{command} --allow-parts")
    assert "10 of 10 rows use a part of their file" in ended.err
    assert "--allow-parts" in said
