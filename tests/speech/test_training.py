"""Training: what a step computes, and that an interrupted run ends where a whole one does."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from speech_models import make_test_set, make_whisper

from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.speech.batches import SpeechDataset, collate, row_labels
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.settings import TrainingSettings
from lorsmerge_cli.speech.source import find_model
from lorsmerge_cli.speech.training import (
    TrainingHooks,
    TrainingResult,
    newest_checkpoint,
    train,
)

SETTINGS = TrainingSettings(learning_rate=1e-3, clip=0.0, epochs=2, effective_batch=8)
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("training") / "base", spells=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Utterance, ...]:
    manifest = make_test_set(tmp_path_factory.mktemp("rows"), count=24)
    return load_data([manifest], max_seconds=2.0).utterances


@pytest.fixture
def speech(base: Path) -> SpeechModel:
    return find_model(base).open(torch.float32, "cpu")


def never() -> bool:
    return False


def ignore(record: dict[str, Any]) -> None:
    pass


def run(
    speech: SpeechModel,
    rows: tuple[Utterance, ...],
    folder: Path,
    settings: TrainingSettings,
    *,
    interrupted: Callable[[], bool] = never,
    resume: bool = False,
    learnt: Callable[[dict[str, Any]], None] | None = None,
) -> TrainingResult:
    def evaluate(epoch: float) -> dict[str, float]:
        return {"score": epoch}

    hooks = TrainingHooks(
        evaluate, lambda epochs: None, interrupted, lambda done, total: None,
        logged=learnt or ignore,
    )  # fmt: skip
    return train(speech, rows, settings, folder, device="cpu", hooks=hooks, resume=resume)


def weights(speech: SpeechModel) -> State:
    return {name: value.clone() for name, value in speech.model.state_dict().items()}


def plain_loss(speech: SpeechModel, rows: tuple[Utterance, ...]) -> torch.Tensor:
    """Mean cross-entropy per token, a row at a time."""
    dataset = SpeechDataset(speech, rows)
    total, count = torch.zeros(()), 0
    for number in range(len(dataset)):
        item = dataset[number]
        labels = torch.tensor(item["labels"])
        start = torch.tensor([speech.model.config.decoder_start_token_id])
        logits = speech.model(
            input_features=item["features"][None],
            decoder_input_ids=torch.cat([start, labels[:-1]])[None],
        ).logits[0]
        total = total - logits.log_softmax(-1)[torch.arange(len(labels)), labels].sum()
        count += len(labels)
    return total / count


def test_labels_are_padded_by_length_and_the_end_counts() -> None:
    end = 9
    items = [
        {"features": torch.zeros(2, 3), "labels": [4, 5, end]},
        {"features": torch.ones(2, 3), "labels": [end]},
    ]
    batch = collate(items, start=1, pad=end)
    assert batch["labels"].tolist() == [[4, 5, end], [end, -100, -100]]
    assert batch["decoder_input_ids"].tolist() == [[1, 4, 5], [1, end, end]]
    assert batch["input_features"].shape == (2, 2, 3)


def test_context_and_given_tokens_are_not_learnt() -> None:
    end = 9
    items = [
        {"features": torch.zeros(2, 3), "labels": [4, 5, 6, end], "given": 1},
        {"features": torch.ones(2, 3), "labels": [4, end], "context": [7, 8]},
        {"features": torch.ones(2, 3), "labels": []},
    ]
    batch = collate(items, start=1, pad=end)
    assert batch["decoder_input_ids"].tolist() == [[1, 4, 5, 6], [7, 8, 1, 4], [1, end, end, end]]
    assert batch["labels"].tolist() == [
        [-100, 5, 6, end], [-100, -100, 4, end], [-100] * 4,
    ]  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_rows_has_context(
    speech: SpeechModel, rows: tuple[Utterance, ...], share: float
) -> None:
    before = [replace(row, previous="la nena", id=f"{row.id}{n}") for n in range(9) for row in rows]
    settings = replace(SETTINGS, condition=share, keep_language=True)
    found = [row_labels(speech, row, settings) for row in before]
    assert sum(bool(item.get("context")) for item in found) / len(found) == pytest.approx(
        share, abs=0.12
    )
    assert found == [row_labels(speech, row, settings) for row in before]
    assert {item["given"] for item in found} == {1}


@pytest.mark.parametrize("batch_size", [2, 24])
def test_steps_are_adams_on_the_mean_loss_of_all_tokens(
    speech: SpeechModel, base: Path, rows: tuple[Utterance, ...], tmp_path: Path, batch_size: int
) -> None:
    settings = replace(SETTINGS, effective_batch=24, batch_size=batch_size, steps=3)
    result = run(speech, rows, tmp_path, settings)
    plain = find_model(base).open(torch.float32, "cpu")
    trained = [p for p in plain.model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=settings.learning_rate)
    losses, norms = [], []
    for _ in range(3):
        loss = plain_loss(plain, rows)
        optimiser.zero_grad()
        loss.backward()
        norms.append(
            torch.stack([p.grad.norm() for p in trained if p.grad is not None]).norm().item()
        )
        losses.append(loss.item())
        optimiser.step()
    assert [entry["loss"] for entry in result.losses] == pytest.approx(losses, rel=1e-4)
    assert [entry["grad_norm"] for entry in result.losses] == pytest.approx(norms, rel=1e-3)
    # Adam's first steps divide a gradient by its own size: entries whose gradient is noise differ
    worst = torch.cat(
        [(a - b).abs().flatten() for a, b in zip(
            weights(speech).values(), weights(plain).values(), strict=True)]
    )  # fmt: skip
    assert worst.quantile(0.99) < 1e-5


@pytest.mark.parametrize("step", [2, 3, 5])
def test_an_interrupted_run_ends_where_a_whole_one_does(
    speech: SpeechModel, base: Path, rows: tuple[Utterance, ...], tmp_path: Path, step: int
) -> None:
    settings = replace(SETTINGS, batch_size=4, spec_augment=True, schedule="linear", warmup=0.3)
    asked = 0

    def at_step() -> bool:
        nonlocal asked
        asked += 1
        return asked == step

    stopped = run(speech, rows, tmp_path / "a", settings, interrupted=at_step)
    assert not stopped.finished
    assert stopped.step == step
    again = find_model(base).open(torch.float32, "cpu")
    resumed = run(again, rows, tmp_path / "a", settings, resume=True)
    whole = find_model(base).open(torch.float32, "cpu")
    expected = run(whole, rows, tmp_path / "b", settings)
    assert resumed.finished
    assert resumed.step == expected.step == 6
    assert resumed.epochs == expected.epochs
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name


@pytest.mark.parametrize(
    ("every", "steps"),
    [(None, [3, 6]), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (3, [3, 6]), (4, [4, 6]), (99, [6])],
)
def test_evaluations_come_when_asked_for_and_change_nothing(
    speech: SpeechModel, base: Path, rows: tuple[Utterance, ...], tmp_path: Path, every: int | None,
    steps: list[int],
) -> None:  # fmt: skip
    """Two epochs of three steps."""
    result = run(speech, rows, tmp_path / "a", replace(SETTINGS, eval_steps=every, keep=9))
    assert [entry["step"] for entry in result.epochs] == steps
    assert [entry["epoch"] for entry in result.epochs] == pytest.approx([n / 3 for n in steps])
    saved = {f"checkpoint-{step}" for step in {*steps, 3, 6}}  # and the ends of epochs
    assert {path.name for path in (tmp_path / "a").glob("checkpoint-*")} == saved
    plain = find_model(base).open(torch.float32, "cpu")
    run(plain, rows, tmp_path / "b", SETTINGS)
    for name, value in weights(plain).items():
        assert torch.equal(weights(speech)[name], value), name


SCORES = {1: 5.0, 2: 7.0, 3: 6.0, 4: 7.0, 5: 6.5, 6: 9.0}  # of steps


def run_with_patience(
    base: Path, rows: tuple[Utterance, ...], folder: Path, patience: int | None, *,
    stop: int | None = None, resume: bool = False, **settings: Any,
) -> tuple[TrainingResult, State]:  # fmt: skip
    speech = find_model(base).open(torch.float32, "cpu")
    steps = iter(range(1, 100))
    hooks = TrainingHooks(
        lambda epoch: {"score": SCORES[round(3 * epoch)]}, lambda epochs: None,
        lambda: next(steps) == stop, lambda done, total: None,
    )  # fmt: skip
    chosen = replace(SETTINGS, patience=patience, masks="LD", batch_size=4, **settings)
    result = train(speech, rows, chosen, folder, device="cpu", hooks=hooks, resume=resume)
    return result, weights(speech)


@pytest.mark.parametrize(
    ("patience", "every", "last"),
    [(1, 1, 3), (2, 1, 4), (3, 1, 5), (4, 1, 6), (1, 2, 4), (None, 1, 6), (1, None, 6)],
)
def test_a_training_ends_when_patience_runs_out(
    base: Path, rows: tuple[Utterance, ...], tmp_path: Path, patience: int | None, every: int | None,
    last: int,
) -> None:  # fmt: skip
    """An equal score is no better one."""
    result, learnt = run_with_patience(base, rows, tmp_path / "a", patience, eval_steps=every)
    assert result.finished
    assert (result.step, result.steps) == (last, 6)
    short, expected = run_with_patience(base, rows, tmp_path / "b", None, steps=last)
    assert len(short.records) == len(result.records) == last
    assert all(learnt[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_an_interruption_does_not_change_where_patience_ends(
    base: Path, rows: tuple[Utterance, ...], tmp_path: Path, stop: int
) -> None:
    settings = {"eval_steps": 2, "schedule": "linear"}
    whole, expected = run_with_patience(base, rows, tmp_path / "a", 1, **settings)
    assert whole.step == 4
    stopped, _ = run_with_patience(base, rows, tmp_path / "b", 1, stop=stop, **settings)
    assert not stopped.finished
    for _ in range(2):  # also of a run that is over
        resumed, learnt = run_with_patience(base, rows, tmp_path / "b", 1, resume=True, **settings)
        assert resumed.finished
        assert resumed.step == 4
        assert resumed.epochs == whole.epochs
        if _ == 0 and stop < 4:
            assert all(learnt[name].equal(value) for name, value in expected.items())


def test_each_step_is_told_once_and_a_resumed_run_begins_with_those_before(
    speech: SpeechModel, base: Path, rows: tuple[Utterance, ...], tmp_path: Path
) -> None:
    """4 steps and then 6, of two epochs of three."""
    settings = replace(SETTINGS, batch_size=4, schedule="linear")
    asked = iter(range(1, 100))
    first: list[dict[str, Any]] = []
    run(
        speech, rows, tmp_path / "a", settings, interrupted=lambda: next(asked) == 4, learnt=first.append
    )  # fmt: skip
    again: list[dict[str, Any]] = []
    resumed = find_model(base).open(torch.float32, "cpu")
    result = run(resumed, rows, tmp_path / "a", settings, resume=True, learnt=again.append)
    whole: list[dict[str, Any]] = []
    plain = find_model(base).open(torch.float32, "cpu")
    expected = run(plain, rows, tmp_path / "b", settings, learnt=whole.append)
    assert len(first) == 4
    assert again[:4] == first  # times and all
    assert [record["step"] for record in again] == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in again] == [record["loss"] for record in whole]
    assert [record["learning_rate"] for record in whole] == pytest.approx(
        [1e-3 * (7 - step) / 6 for step in range(1, 7)]  # that the step was made with
    )
    assert [record["epoch"] for record in whole] == pytest.approx([n / 3 for n in range(1, 7)])
    assert result.records == again
    assert result.losses == expected.losses
    ended: list[dict[str, Any]] = []
    run(resumed, rows, tmp_path / "a", settings, resume=True, learnt=ended.append)
    assert ended == again  # of a run that is finished


def test_the_losses_of_a_run_are_means_since_the_ones_before(
    speech: SpeechModel, rows: tuple[Utterance, ...], tmp_path: Path
) -> None:
    """An epoch of six steps and a half of one: after five steps, at its end, and at the end."""
    result = run(speech, rows, tmp_path, replace(SETTINGS, effective_batch=4, epochs=1.5))
    losses = [record["loss"] for record in result.records]
    assert [entry["step"] for entry in result.losses] == [5, 6, 9]
    means = [sum(losses[:5]) / 5, losses[5], sum(losses[6:]) / 3]
    assert [entry["loss"] for entry in result.losses] == pytest.approx(means, rel=1e-12)
    assert set(result.losses[0]) == {"loss", "grad_norm", "learning_rate", "epoch", "step"}


def test_a_step_has_its_speed_and_time(
    speech: SpeechModel, rows: tuple[Utterance, ...], tmp_path: Path
) -> None:
    """Two steps of 16 and of 8 utterances."""
    began, clock = datetime.now(UTC), time.perf_counter()
    result = run(speech, rows, tmp_path, replace(SETTINGS, effective_batch=16, epochs=1))
    took = time.perf_counter() - clock
    speeds = [record["utterances_per_second"] for record in result.records]
    assert sum(count / speed for count, speed in zip((16, 8), speeds, strict=True)) < took
    times = [datetime.fromisoformat(record["time"]) for record in result.records]
    assert began.replace(microsecond=0) <= times[0] <= times[1] <= datetime.now(UTC)


def test_data_for_workers_that_are_not_forked(
    speech: SpeechModel, rows: tuple[Utterance, ...]
) -> None:
    """As Python 3.14 and macOS start them: the data set is pickled, without the weights."""
    data = SpeechDataset(speech, rows)
    pickled = pickle.dumps(data)
    assert b"WhisperForConditionalGeneration" not in pickled
    copy = pickle.loads(pickled)
    assert torch.equal(copy[1]["features"], data[1]["features"])
    assert copy[1]["labels"] == data[1]["labels"]


def test_each_step_counts_its_epoch(
    speech: SpeechModel, rows: tuple[Utterance, ...], tmp_path: Path
) -> None:
    result = run(speech, rows, tmp_path, replace(SETTINGS, epochs=10.0, steps=4))
    assert [entry["epoch"] for entry in result.epochs] == [1.0, pytest.approx(4 / 3)]


def test_a_frozen_encoder_stays_and_the_decoder_moves(
    speech: SpeechModel, rows: tuple[Utterance, ...], tmp_path: Path
) -> None:
    before = weights(speech)
    run(speech, rows, tmp_path, replace(SETTINGS, steps=1, freeze_encoder=True))
    after = weights(speech)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("model.encoder.") for name in moved)
    assert "model.decoder.layers.0.fc1.weight" in moved


def test_masks_change_the_training_and_not_the_config(
    speech: SpeechModel, base: Path, rows: tuple[Utterance, ...], tmp_path: Path
) -> None:
    config = speech.model.config.to_dict()
    run(speech, rows, tmp_path / "a", replace(SETTINGS, steps=1, spec_augment=True))
    plain = find_model(base).open(torch.float32, "cpu")
    run(plain, rows, tmp_path / "b", replace(SETTINGS, steps=1))
    name = "model.encoder.conv1.weight"
    assert not torch.equal(weights(speech)[name], weights(plain)[name])
    assert speech.model.config.to_dict() == config


def test_masks_lie_on_the_speech(
    speech: SpeechModel, rows: tuple[Utterance, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Clips of 0.3 to 1.9 s in a window of 2 s."""
    masked: list[torch.Tensor] = []
    real = type(speech.model.model)._mask_input_features

    def record(self: Any, features: torch.Tensor, **rest: Any) -> torch.Tensor:
        before = features.clone()
        after = real(self, features, **rest)
        masked.append((before != after).all(1))
        return after

    monkeypatch.setattr(type(speech.model.model), "_mask_input_features", record)
    short = tuple(row for row in rows if row.duration and row.duration < 1)
    settings = replace(SETTINGS, steps=2, effective_batch=len(short), spec_augment=True)
    run(speech, short, tmp_path, settings)
    times = torch.cat(masked)
    assert len(short) > 4
    assert times[:, :64].any()
    assert not times[:, 64:].any()


def test_checkpoints_are_few_and_come_when_asked_for(
    speech: SpeechModel, rows: tuple[Utterance, ...], tmp_path: Path
) -> None:
    run(speech, rows, tmp_path, replace(SETTINGS, save_steps=1, keep=3))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-4", "checkpoint-5", "checkpoint-6",
    ]  # fmt: skip


def test_a_checkpoint_that_was_cut_short_is_passed_over(
    speech: SpeechModel, rows: tuple[Utterance, ...], tmp_path: Path
) -> None:
    run(speech, rows, tmp_path, SETTINGS)
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"global_step": ')
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    assert newest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("settings", "processes", "expected"),
    [
        (TrainingSettings(), 1, (8, 4)),  # the paper's
        (TrainingSettings(), 2, (8, 2)),
        (TrainingSettings(), 8, (4, 1)),
        (TrainingSettings(effective_batch=12), 1, (6, 2)),
        (TrainingSettings(batch_size=16), 1, (16, 2)),
    ],
)
def test_batches_make_up_the_effective_one(
    settings: TrainingSettings, processes: int, expected: tuple[int, int]
) -> None:
    assert settings.batches(processes) == expected


@pytest.mark.parametrize(
    ("settings", "processes"),
    [(TrainingSettings(), 3), (TrainingSettings(batch_size=5), 1)],
)
def test_batches_that_do_not_divide_are_refused(settings: TrainingSettings, processes: int) -> None:
    with pytest.raises(UsageFault, match="effective-batch a multiple of"):
        settings.batches(processes)
