"""Features that are kept for all epochs are those that were made, wherever they lie."""

from __future__ import annotations

import mmap
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speech_models import make_test_set, make_whisper

from lorsmerge_cli.data.audio import UnreadableAudio
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech import batches, training
from lorsmerge_cli.speech.features import trimmed, untrimmed
from lorsmerge_cli.speech.kept import KeptFeatures, frames_of
from lorsmerge_cli.speech.model import SpeechModel, audio_of
from lorsmerge_cli.speech.settings import TrainingSettings
from lorsmerge_cli.speech.source import find_model
from lorsmerge_cli.speech.training import TrainingHooks, train

BINS, FRAMES = 4, 50
SETTINGS = TrainingSettings(learning_rate=1e-3, epochs=3, effective_batch=8, spec_augment=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("kept") / "base", spells=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Utterance, ...]:
    manifest = make_test_set(tmp_path_factory.mktemp("rows"), count=24)
    return load_data([manifest], max_seconds=2.0).utterances


def clip(columns: int, seed: int = 0) -> torch.Tensor:
    """Features of a clip: noise, and then what Whisper's extractor makes of padding."""
    made = torch.randn(BINS, FRAMES, generator=torch.Generator().manual_seed(seed))
    made[:, columns:] = made.min()
    return made


def store(sizes: list[int], folder: Path, **sizes_of: int) -> KeptFeatures:
    return KeptFeatures(sizes, (BINS, FRAMES), folder=folder, **sizes_of)


def bits(features: torch.Tensor) -> list[int]:
    return features.contiguous().view(torch.int32).flatten().tolist()


@given(
    st.lists(
        st.lists(
            st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")]), min_size=2, max_size=2
        ),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_trimmed_features_come_back_to_the_bit(columns: list[list[float]]) -> None:
    features = torch.tensor(columns).T
    short = trimmed(features)
    assert 1 <= short.shape[1] <= features.shape[1]
    assert bits(untrimmed(short, features.shape[1])) == bits(features)


def test_what_is_trimmed_is_the_padding() -> None:
    assert trimmed(clip(20)).shape == (BINS, 21)
    assert trimmed(torch.zeros(BINS, FRAMES)).shape == (BINS, 1)
    assert trimmed(clip(FRAMES)).shape == (BINS, FRAMES)


@pytest.mark.parametrize(
    ("memory", "disk"),
    [(1 << 20, 0), (0, 1 << 20), (BINS * 4 * 60, 1 << 20)],
    ids=["memory", "file", "both"],
)
def test_rows_come_back_to_the_bit(tmp_path: Path, memory: int, disk: int) -> None:
    sizes = [20, 50, 1, 0, 33]
    kept = store(sizes, tmp_path, memory=memory, disk=disk)
    assert all(kept.get(row) is None for row in range(5))
    for row in (3, 0, 4, 1, 2):
        kept.put(row, clip(sizes[row], row), row + 7)
    for row in range(5):
        found = kept.get(row)
        assert found is not None
        assert bits(found[0]) == bits(clip(sizes[row], row))
        assert found[1] == row + 7
    assert not list(tmp_path.iterdir())  # the file has no name


def test_rows_beyond_memory_and_disk_are_not_kept(tmp_path: Path) -> None:
    room = BINS * 4 * 14  # of one row of 10 columns
    kept = store([10] * 4, tmp_path, memory=room, disk=2 * room)
    for row in range(4):
        kept.put(row, clip(10, row), 10)
    assert [kept.get(row) is not None for row in range(4)] == [True, True, True, False]


def test_a_row_longer_than_it_said_is_not_kept(tmp_path: Path) -> None:
    kept = store([10, 10], tmp_path, memory=1 << 20)
    kept.put(0, clip(30), 30)
    kept.put(1, clip(10, 1), 10)
    assert kept.get(0) is None
    found = kept.get(1)
    assert found is not None
    assert found[0].equal(clip(10, 1))


def test_damaged_bytes_are_not_taken_for_features(tmp_path: Path) -> None:
    kept = store([10, 10], tmp_path, memory=0, disk=1 << 20)
    kept.put(0, clip(10), 10)
    kept.put(1, clip(10, 1), 10)
    assert kept._file is not None
    os.pwrite(kept._file.fileno(), b"\x7f", 30)
    assert kept.get(0) is None
    assert kept.get(1) is not None
    os.ftruncate(kept._file.fileno(), 0)
    assert kept.get(1) is None


def test_a_full_disk_is_given_back_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store([10] * 3, tmp_path, memory=0, disk=1 << 20)
    kept.put(0, clip(10), 10)
    assert kept._file is not None

    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", full)
        kept.put(1, clip(10), 10)
    assert os.fstat(kept._file.fileno()).st_size == 0
    kept.put(2, clip(10), 10)
    assert [kept.get(row) for row in range(3)] == [None, None, None]


def test_memory_that_the_system_does_not_give_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mmap.mmap

    def small(number: int, size: int) -> mmap.mmap:
        if size > 1000:
            raise OSError(12, "Cannot allocate memory")
        return real(number, size)

    monkeypatch.setattr(mmap, "mmap", small)
    kept = store([FRAMES] * 2, tmp_path, memory=1 << 20, disk=1 << 20)
    kept.put(1, clip(10), 10)
    found = kept.get(1)
    assert found is not None
    assert found[0].equal(clip(10))


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    kept = store([10], tmp_path / "nowhere", memory=0, disk=1 << 20)
    kept.put(0, clip(10), 10)
    assert kept.get(0) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_a_forked_process_shares_what_it_makes(tmp_path: Path, memory: int) -> None:
    kept = store([10, 10], tmp_path, memory=memory, disk=1 << 20)
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        kept.put(1, clip(10, 1), 10)
        os._exit(0)
    os.waitpid(child, 0)
    found = kept.get(1)
    assert found is not None
    assert found[0].equal(clip(10, 1))


def test_unknown_durations_take_a_window() -> None:
    assert frames_of(1.001, 30.0, 0.01) == 101
    assert frames_of(None, 30.0, 0.01) == 3000


def run(
    base: Path, rows: tuple[Utterance, ...], folder: Path, settings: TrainingSettings
) -> SpeechModel:
    speech = find_model(base).open(torch.float32, "cpu")
    hooks = TrainingHooks(
        lambda epoch: {"score": epoch}, lambda epochs: None, lambda: False, lambda done, total: None
    )
    train(speech, rows, settings, folder, device="cpu", hooks=hooks)
    return speech


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the rows whose audio is read."""
    seen: list[str] = []

    def record(row: Utterance) -> object:
        seen.append(row.id)
        return audio_of(row)

    monkeypatch.setattr(batches, "audio_of", record)
    return seen


@pytest.mark.parametrize("memory", [True, False])
def test_a_training_reads_each_clip_once_and_learns_the_same(
    base: Path, rows: tuple[Utterance, ...], tmp_path: Path, read: list[str],
    monkeypatch: pytest.MonkeyPatch, memory: bool,
) -> None:  # fmt: skip
    if not memory:  # the file
        monkeypatch.setattr(training, "FEATURES_SHARE", 0.0)
    once = run(base, rows, tmp_path / "once", SETTINGS).model.state_dict()
    assert sorted(read) == sorted(row.id for row in rows)
    read.clear()
    monkeypatch.setattr(training, "_kept", lambda *arguments: None)
    always = run(base, rows, tmp_path / "always", SETTINGS).model.state_dict()
    assert len(read) == 3 * len(rows)
    assert all(value.equal(always[name]) for name, value in once.items())


def test_processes_that_read_ahead_learn_the_same(
    base: Path, rows: tuple[Utterance, ...], tmp_path: Path
) -> None:
    alone = run(base, rows, tmp_path / "alone", SETTINGS).model.state_dict()
    ahead = run(base, rows, tmp_path / "ahead", replace(SETTINGS, workers=2)).model.state_dict()
    assert all(value.equal(ahead[name]) for name, value in alone.items())


def test_one_epoch_keeps_nothing(
    base: Path, rows: tuple[Utterance, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "KeptFeatures", None)
    run(base, rows, tmp_path, replace(SETTINGS, epochs=1))


def test_a_damaged_clip_is_skipped_in_each_epoch(
    base: Path, rows: tuple[Utterance, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fail(row: Utterance) -> object:
        if row.id == rows[0].id:
            tried.append(row.id)
            raise UnreadableAudio("It is damaged.")
        return audio_of(row)

    monkeypatch.setattr(batches, "audio_of", fail)
    run(base, rows, tmp_path, SETTINGS)
    assert len(tried) == 3
