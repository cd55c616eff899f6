"""Training on data with clips that cannot be read: what a step then is, and what is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from speech_models import make_test_set, make_whisper

from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.utterance import Drop, Utterance
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.speech.batches import IGNORED, SpeechDataset, collate
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.settings import TrainingSettings
from lorsmerge_cli.speech.source import find_model
from lorsmerge_cli.speech.training import TrainingHooks, TrainingResult, train

SETTINGS = TrainingSettings(learning_rate=1e-3, clip=0.0, epochs=2, effective_batch=8)
COUNT = 24
Rows = tuple[Utterance, ...]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("training") / "base", spells=True)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    manifest = make_test_set(tmp_path_factory.mktemp("rows"), count=COUNT)
    return load_data([manifest], max_seconds=2.0).utterances


def spoil(rows: Rows, folder: Path, *numbers: int) -> Rows:
    """Rows some of which have a clip of the same length whose last samples are no numbers."""
    changed = list(rows)
    for number in numbers:
        samples, rate = soundfile.read(rows[number].audio.path, dtype="float32")
        samples[-5:] = np.nan
        path = folder / f"{number}.wav"
        soundfile.write(path, samples, rate, subtype="FLOAT")
        changed[number] = replace(rows[number], audio=AudioFile(path))
    return tuple(changed)


def opened(base: Path) -> SpeechModel:
    return find_model(base).open(torch.float32, "cpu")


def run(
    speech: SpeechModel,
    rows: Rows,
    folder: Path,
    settings: TrainingSettings,
    *,
    told: Callable[[Sequence[Drop]], None] = lambda drops: None,
    after_step: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **resuming: object,
) -> TrainingResult:
    hooks = TrainingHooks(
        lambda epoch: {"score": epoch}, lambda epochs: None, after_step, progress, told
    )
    return train(speech, rows, settings, folder, device="cpu", hooks=hooks, **resuming)


def weights(speech: SpeechModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in speech.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def mean_loss(speech: SpeechModel, rows: Sequence[Utterance]) -> torch.Tensor:
    """Mean cross-entropy per token, a row at a time."""
    dataset = SpeechDataset(speech, rows)
    total, count = torch.zeros(()), 0
    for item in (dataset[number] for number in range(len(dataset))):
        labels = torch.tensor(item["labels"])
        start = torch.tensor([speech.model.config.decoder_start_token_id])
        logits = speech.model(
            input_features=item["features"][None],
            decoder_input_ids=torch.cat([start, labels[:-1]])[None],
        ).logits[0]
        total = total - logits.log_softmax(-1)[torch.arange(len(labels)), labels].sum()
        count += len(labels)
    return total / count


@pytest.mark.parametrize("batch_size", [2, 24])
def test_a_step_is_one_of_the_rows_that_can_be_read(
    base: Path, good: Rows, tmp_path: Path, batch_size: int
) -> None:
    bad = (3, 11)
    settings = replace(SETTINGS, effective_batch=COUNT, batch_size=batch_size, steps=3)
    speech = opened(base)
    result = run(speech, spoil(good, tmp_path, *bad), tmp_path / "run", settings)
    plain = opened(base)
    rest = [row for number, row in enumerate(good) if number not in bad]
    trained = [p for p in plain.model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=settings.learning_rate)
    losses = []
    for _ in range(3):
        loss = mean_loss(plain, rest)
        optimiser.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    assert [entry["loss"] for entry in result.losses] == pytest.approx(losses, rel=1e-4)
    ours, theirs = weights(speech), weights(plain)
    worst = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in ours])
    assert worst.quantile(0.99) < 1e-5


def test_each_is_told_once_by_name(base: Path, good: Rows, tmp_path: Path) -> None:
    rows = list(spoil(good, tmp_path, 3))
    (tmp_path / "gone.wav").write_bytes(good[5].audio.path.read_bytes())
    rows[5] = replace(good[5], audio=AudioFile(tmp_path / "gone.wav"))
    (tmp_path / "gone.wav").unlink()
    rows[7] = replace(good[7], duration=(good[7].duration or 0) + 1)
    told: list[Drop] = []
    run(opened(base), tuple(rows), tmp_path / "run", SETTINGS, told=told.extend)
    assert {drop.id: drop.reason for drop in told} == {
        "u3": "audio with samples that are no numbers",
        "u5": "missing audio",
        "u7": "audio ends before the row does",
    }
    assert len(told) == 3


def test_readers_of_their_own_tell_the_same(base: Path, good: Rows, tmp_path: Path) -> None:
    rows = spoil(good, tmp_path, 3, 11)
    found = []
    for workers in (0, 2):
        told: list[Drop] = []
        speech = opened(base)
        settings = replace(SETTINGS, steps=3, workers=workers)
        run(speech, rows, tmp_path / f"run{workers}", settings, told=told.extend)
        found.append(({drop.id for drop in told}, weights(speech)))
    assert found[0][0] == found[1][0] == {"u3", "u11"}
    assert same(found[0][1], found[1][1])


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("spec_augment", [False, True])
def test_a_step_without_a_row_changes_nothing(
    base: Path, good: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float,
    spec_augment: bool,
) -> None:  # fmt: skip
    """Not even by the momentum of the steps before."""
    settings = replace(
        SETTINGS, effective_batch=2, batch_size=1, epochs=3, clip=clip, spec_augment=spec_augment
    )
    rows = spoil(good[:6], tmp_path, 0, 1, 2, 3)
    speech = opened(base)
    states: list[dict[str, torch.Tensor]] = []
    order: list[str] = []
    own = SpeechDataset.__getitem__

    def read(self: SpeechDataset, index: int) -> object:
        order.append(self.utterances[index].id)
        return own(self, index)

    monkeypatch.setattr(SpeechDataset, "__getitem__", read)
    result = run(
        speech, rows, tmp_path / "run", settings,
        progress=lambda done, total: states.append(weights(speech)),
    )  # fmt: skip
    assert all(np.isfinite(entry["loss"]) for entry in result.losses)
    empty = [set(order[n : n + 2]) <= {"u0", "u1", "u2", "u3"} for n in range(0, 18, 2)]
    assert [same(a, b) for a, b in pairwise(states)] == empty
    assert True in empty[1:]  # behind a step with a momentum
    assert False in empty


def test_a_batch_of_nothing_but_silence(base: Path, good: Rows, tmp_path: Path) -> None:
    speech = opened(base)
    data = SpeechDataset(speech, spoil(good[:3], tmp_path, 0, 1, 2))
    batch = collate([data[n] for n in range(3)], start=1, pad=2)
    assert batch["labels"].tolist() == 3 * [[IGNORED]]
    assert batch["decoder_input_ids"].tolist() == 3 * [[1]]
    assert (
        batch["input_features"].shape
        == collate([SpeechDataset(speech, good)[0]] * 3, 1, 2)["input_features"].shape
    )
    assert torch.isfinite(batch["input_features"]).all()
    assert [drop.id for drop in batch["drops"]] == ["u0", "u1", "u2"]


# --- too many -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "fails"), [(2, False), (4, False), (5, True), (24, True)])
def test_a_training_of_which_much_is_bad_ends(
    base: Path, good: Rows, tmp_path: Path, count: int, fails: bool
) -> None:
    """Over a tenth, and five at least."""
    rows = spoil(good, tmp_path, *range(count))
    told: list[Drop] = []
    if not fails:
        run(opened(base), rows, tmp_path / "run", SETTINGS, told=told.extend)
        assert len(told) == count
        return
    with pytest.raises(
        LorsmergeError,
        match=rf"{count} of the first {COUNT} utterances .* skipped \({count} audio with samples that "
        r"are no numbers\), the first: .*wav has samples.*--check-audio.*--force",
    ):
        run(opened(base), rows, tmp_path / "run", SETTINGS, told=told.extend)
    assert len(told) == count  # all are told before


def test_a_tenth_is_not_too_many(base: Path, good: Rows, tmp_path: Path) -> None:
    rows = spoil(good, tmp_path, *range(5))
    many = tuple(
        replace(row, id=f"{n}-{row.id}") for n in range(3) for row in (good if n else rows)
    )
    told: list[Drop] = []
    settings = replace(SETTINGS, epochs=1, effective_batch=24)
    run(opened(base), many, tmp_path / "run", settings, told=told.extend)
    assert len(told) == 5  # of 72


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 3, 4])
def test_an_interrupted_run_goes_on_without_what_was_removed(
    base: Path, good: Rows, tmp_path: Path, step: int
) -> None:
    settings = replace(SETTINGS, batch_size=4, spec_augment=True, schedule="linear", warmup=0.3)
    rows = spoil(good, tmp_path, 3, 11)
    asked, told = 0, []

    def at_step() -> bool:
        nonlocal asked
        asked += 1
        return asked == step

    stopped = run(
        opened(base), rows, tmp_path / "a", settings, after_step=at_step, told=told.extend
    )
    assert not stopped.finished
    removed = {drop.id for drop in told}
    assert removed
    for drop in told:  # it was mended, but is no longer asked for
        index = int(drop.id[1:])
        drop.audio.path.write_bytes(good[index].audio.path.read_bytes())
    again = opened(base)
    later: list[Drop] = []
    resumed = run(
        again, rows, tmp_path / "a", settings, told=later.extend, resume=True, skipped=told,
        removed=removed,
    )  # fmt: skip
    assert resumed.finished
    assert {drop.id for drop in later} == {"u3", "u11"} - removed
    whole = opened(base)
    run(whole, spoil(good, tmp_path, 3, 11), tmp_path / "b", settings)
    assert same(weights(whole), weights(again))
