"""Park et al.'s masks: their sizes, that they lie on the clip, and that they are drawn by seed alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speech_models import make_test_set, make_whisper

from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.speech.masks import POLICIES, Masks, mask, parse_masks
from lorsmerge_cli.speech.settings import TrainingSettings
from lorsmerge_cli.speech.source import find_model
from lorsmerge_cli.speech.training import TrainingHooks, train

BINS, FRAMES = 80, 300


def masked(masks: Masks, frames: int, *seed: int) -> torch.Tensor:
    """Where a clip of ones is masked."""
    features = torch.ones(1, BINS, FRAMES)
    mask(features, [frames], masks, [list(seed)])
    return features[0] == 0


def test_the_policies_are_the_papers() -> None:
    """Table 1 of Park et al. 2019, without W: F, m_F, T, m_T, p."""
    assert {
        name: (m.bins, m.bin_masks, m.frames, m.frame_masks, m.share)
        for name, m in POLICIES.items()
    } == {
        "LB": (27, 1, 100, 1, 1.0),
        "LD": (27, 2, 100, 2, 1.0),
        "SM": (15, 2, 70, 2, 0.2),
        "SS": (27, 2, 70, 2, 0.2),
    }


@given(
    st.builds(
        Masks, st.integers(0, 100), st.integers(0, 3), st.integers(0, 400), st.integers(0, 3),
        st.floats(0, 1),
    ),
    st.integers(0, FRAMES),
    st.integers(0, 100),
)  # fmt: skip
def test_masks_are_bands_of_the_clip(masks: Masks, frames: int, seed: int) -> None:
    found = masked(masks, frames, seed)
    assert not found[:, frames:].any()
    within = found[:, :frames]
    times, bins = within.all(0), within.all(1)
    assert within.equal(times | bins[:, None])  # nothing but whole frames and whole bins
    if frames and not bins.all():
        assert times.sum() <= masks.frame_masks * min(masks.frames, masks.share * frames)
    if frames and not times.all():
        assert bins.sum() <= masks.bin_masks * masks.bins


def test_sizes_and_places_are_drawn_evenly() -> None:
    """A size from 0 to the largest, and then each place where it fits."""
    masks = Masks(bins=3, bin_masks=1, frames=0)
    sizes = [int(masked(masks, FRAMES, n).all(1).sum()) for n in range(2000)]
    assert [sizes.count(size) for size in range(4)] == pytest.approx([500] * 4, abs=90)
    masks = Masks(bins=0, frames=1, share=1.0)
    firsts = [masked(masks, 4, n).all(0).nonzero().flatten().tolist() for n in range(2000)]
    assert firsts.count([]) == pytest.approx(1000, abs=120)
    for place in range(4):
        assert firsts.count([place]) == pytest.approx(250, abs=75)


def test_two_masks_are_drawn_apart() -> None:
    found = masked(Masks(bins=0, bin_masks=0, frames=20, frame_masks=2), FRAMES, 3)
    times = found.all(0).tolist()
    assert sum(a != b for a, b in pairwise(times)) == 4  # two pieces


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SM", Masks(15, 2, 70, 2, 0.2)),
        ("F=27,mF=2,T=100,mT=2,p=1", Masks(27, 2, 100, 2, 1.0)),
        ("p=0.2, T=70", replace(POLICIES["LB"], frames=70, share=0.2)),
        ("F=0,T=0", Masks(bins=0, frames=0)),
    ],
)
def test_sizes_are_read(text: str, expected: Masks) -> None:
    assert parse_masks(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("XL", "'XL' is neither a policy nor a size"),
        ("", "'' is neither a policy nor a size"),
        ("W=80", "'W=80' is neither a policy nor a size"),
        ("F=2,F=3", "F is given twice"),
        ("F=2,T", "T is not a number"),
        ("F=2.5", "F=2.5 is not a number"),
        ("T=-1", "T=-1 is not between 0 and 10,000"),
        ("p=1.5", "p=1.5 is not between 0 and 1"),
        ("p=nan", "p=nan is not between 0 and 1"),
    ],
)
def test_sizes_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageFault, match=message) as refused:
        parse_masks(text)
    assert "LB, LD, SM or SS" in str(refused.value)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("masks") / "base", spells=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Utterance, ...]:
    manifest = make_test_set(tmp_path_factory.mktemp("rows"), count=12)
    return load_data([manifest], max_seconds=2.0).utterances


SETTINGS = TrainingSettings(
    learning_rate=1e-3, epochs=2, effective_batch=4, masks="F=10,mF=2,T=30,mT=2"
)


def seen(
    base: Path, rows: tuple[Utterance, ...], folder: Path, monkeypatch: pytest.MonkeyPatch,
    settings: TrainingSettings, config: dict[str, Any] | None = None, *, resume: bool = False,
    stop: int | None = None,
) -> list[torch.Tensor]:  # fmt: skip
    """The features that a training's encoder hears, row by row."""
    speech = find_model(base).open(torch.float32, "cpu")
    for name, value in (config or {}).items():
        setattr(speech.model.config, name, value)
    heard: list[torch.Tensor] = []
    kind = type(speech.model.model.encoder)
    real = kind.forward

    def record(self: Any, features: torch.Tensor, *rest: Any, **named: Any) -> Any:
        heard.extend(features.clone())
        return real(self, features, *rest, **named)

    steps = iter(range(1, 1000))
    hooks = TrainingHooks(
        lambda epoch: {"score": epoch}, lambda epochs: None, lambda: next(steps) == stop,
        lambda done, total: None,
    )  # fmt: skip
    with monkeypatch.context() as watched:
        watched.setattr(kind, "forward", record)
        train(speech, rows, settings, folder, device="cpu", hooks=hooks, resume=resume)
    return heard


def test_a_training_masks_clips_by_step_and_row(
    base: Path, rows: tuple[Utterance, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = seen(base, rows, tmp_path / "plain", monkeypatch, replace(SETTINGS, masks=None))
    found = seen(base, rows, tmp_path / "a", monkeypatch, SETTINGS)
    other = seen(base, rows, tmp_path / "b", monkeypatch, replace(SETTINGS, batch_size=1))
    seeds = [[0, step, row] for step in range(6) for row in range(4)]
    assert len(plain) == len(found) == len(other) == 24
    for whole, one, two, seed in zip(plain, found, other, seeds, strict=True):
        assert one.equal(two)  # the batch size changes nothing
        own = int((whole != whole[:, -1:]).any(0).nonzero()[-1]) + 1
        length = next(n for n in range(own, own - 4, -1) if _expected(whole, n, seed).equal(one))
        assert one[:, length:].equal(whole[:, length:])
    assert not torch.stack(plain).equal(torch.stack(found))
    again = seen(base, rows, tmp_path / "c", monkeypatch, replace(SETTINGS, seed=1))
    assert not torch.stack(again).equal(torch.stack(found))


def _expected(features: torch.Tensor, length: int, seed: list[int]) -> torch.Tensor:
    made = features.clone()[None]
    mask(made, [length], parse_masks("F=10,mF=2,T=30,mT=2"), [seed])
    return made[0]


@pytest.mark.parametrize("step", [1, 2])
def test_a_resumed_training_masks_as_a_whole_one(
    base: Path, rows: tuple[Utterance, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:  # fmt: skip
    whole = seen(base, rows, tmp_path / "a", monkeypatch, SETTINGS)
    before = seen(base, rows, tmp_path / "b", monkeypatch, SETTINGS, stop=step)
    after = seen(base, rows, tmp_path / "b", monkeypatch, SETTINGS, resume=True)
    assert len(before) == 4 * step
    assert torch.stack(before + after).equal(torch.stack(whole))


def test_masks_are_those_asked_for_and_not_the_bases(
    base: Path, rows: tuple[Utterance, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base whose config turns SpecAugment on is trained without it all the same."""
    config = {"apply_spec_augment": True, "mask_time_prob": 0.9, "mask_feature_prob": 0.9}
    for name, masks in (("plain", None), ("own", SETTINGS.masks)):
        settings = replace(SETTINGS, epochs=1, masks=masks)
        expected = seen(base, rows, tmp_path / name, monkeypatch, settings)
        found = seen(base, rows, tmp_path / f"{name}-on", monkeypatch, settings, config)
        assert torch.stack(found).equal(torch.stack(expected))
