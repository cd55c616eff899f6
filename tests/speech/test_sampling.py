"""Joint training in which small languages count for more."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speech_models import make_test_set, make_whisper

from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech import batches
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.sampling import LanguageSampler, epoch_counts, language_shares
from lorsmerge_cli.speech.settings import TrainingSettings
from lorsmerge_cli.speech.source import find_model
from lorsmerge_cli.speech.training import TrainingHooks, TrainingResult, train
from lorsmerge_cli.usage import check_training

COUNTS = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 200), min_size=1)
SETTINGS = TrainingSettings(learning_rate=1e-3, epochs=2, effective_batch=8, batch_size=4)


@given(COUNTS, st.floats(1, 1000))
def test_shares_are_the_powers_of_the_counts(counts: dict[str, int], temperature: float) -> None:
    powers = {name: n ** (1 / temperature) for name, n in counts.items()}
    for name, share in language_shares(counts, temperature).items():
        assert share == pytest.approx(powers[name] / sum(powers.values()), rel=1e-9)
    found = epoch_counts(counts, temperature)
    assert sum(found.values()) == sum(counts.values())
    assert all(found[name] >= 1 for name in counts)
    for name, share in language_shares(counts, temperature).items():
        assert abs(found[name] - share * sum(counts.values())) < 1
    assert epoch_counts(counts, 1) == counts


@given(COUNTS, st.sampled_from([1.5, 5.0, 100.0]), st.integers(0, 3))
def test_no_row_is_repeated_before_all_of_its_language_were_taken(
    counts: dict[str, int], temperature: float, seed: int
) -> None:
    languages = [name for name, n in counts.items() for _ in range(n)]
    sampler = LanguageSampler(languages, temperature, seed)
    seen = Counter[int]()
    for epoch in range(4):
        sampler.set_epoch(epoch)
        taken = list(sampler)
        assert len(taken) == len(languages) == len(sampler)
        assert Counter(languages[index] for index in taken) == Counter(sampler.counts)
        seen.update(taken)
        for name in counts:
            times = [seen[n] for n, language in enumerate(languages) if language == name]
            assert max(times) - min(times) <= 1
    again = LanguageSampler(languages, temperature, seed)
    again.set_epoch(3)
    assert list(again) == taken  # without the epochs before


def test_a_large_temperature_is_uniform_and_seeds_differ() -> None:
    languages = ["ca"] * 900 + ["de"] * 90 + ["mt"] * 10
    one, other = (LanguageSampler(languages, 1e6, seed) for seed in (0, 1))
    assert set(one.counts.values()) <= {333, 334}
    assert list(one) != list(other)
    first = list(one)
    one.set_epoch(1)
    assert list(one) != first


@pytest.mark.parametrize("value", [0.5, 0.0, -1.0, float("inf"), float("nan")])
def test_temperatures_that_are_none(value: float) -> None:
    faults = check_training(replace(SETTINGS, language_temperature=value), "cpu")
    assert ["--language-temperature" in str(fault) for fault in faults] == [True]


# --- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("sampling") / "base", spells=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Eighteen rows of Catalan and two of each other language."""
    manifest = make_test_set(tmp_path_factory.mktemp("rows"), count=22)
    found = load_data([manifest], max_seconds=2.0).utterances
    few = dict(enumerate(("de", "de", "zh", "zh")))
    return [replace(row, language=few.get(n, "ca"), task="asr") for n, row in enumerate(found)]


def run(
    speech: SpeechModel, rows: list[Utterance], folder: Path, settings: TrainingSettings,
    stop: int = 0, resume: bool = False,
) -> TrainingResult:  # fmt: skip
    asked = 0

    def interrupted() -> bool:
        nonlocal asked
        asked += 1
        return asked == stop

    hooks = TrainingHooks(
        lambda epoch: {"score": epoch}, lambda epochs: None, interrupted, lambda done, total: None
    )
    return train(speech, rows, settings, folder, device="cpu", hooks=hooks, resume=resume)


def trained(
    base: Path, rows: list[Utterance], folder: Path, settings: TrainingSettings, **how: int
):
    speech = find_model(base).open(torch.float32, "cpu")
    result = run(speech, rows, folder, settings, **how)
    return result, {name: value.clone() for name, value in speech.model.state_dict().items()}


def test_one_is_bit_for_bit_no_temperature(
    base: Path, rows: list[Utterance], tmp_path: Path
) -> None:
    plain = trained(base, rows, tmp_path / "a", SETTINGS)[1]
    one = trained(base, rows, tmp_path / "b", replace(SETTINGS, language_temperature=1.0))[1]
    assert all(torch.equal(plain[name], value) for name, value in one.items())


@pytest.mark.parametrize(("stop", "workers"), [(1, 0), (2, 0), (4, 0), (5, 1)])
def test_an_interrupted_run_ends_where_a_whole_one_does(
    base: Path, rows: list[Utterance], tmp_path: Path, stop: int, workers: int
) -> None:
    settings = replace(SETTINGS, language_temperature=4.0, workers=workers)
    stopped, _ = trained(base, rows, tmp_path / "a", settings, stop=stop)
    assert not stopped.finished
    resumed, found = trained(base, rows, tmp_path / "a", settings, resume=True)
    whole, wanted = trained(base, rows, tmp_path / "b", settings)
    assert resumed.step == whole.step == settings.total_steps(len(rows)) == 6
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_an_epoch_has_the_rows_of_the_sampler(
    base: Path, rows: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    item = batches.SpeechDataset.__getitem__

    def hear(data: batches.SpeechDataset, index: int) -> dict[str, Any]:
        heard.append(data.utterances[index].id)
        return item(data, index)

    monkeypatch.setattr(batches.SpeechDataset, "__getitem__", hear)
    settings = replace(SETTINGS, language_temperature=100.0)
    trained(base, rows, tmp_path, settings)
    sampler = LanguageSampler([row.language for row in rows], 100.0, settings.seed)
    wanted = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        wanted += [rows[index].id for index in sampler]
    assert heard == wanted
    assert Counter(row.language for row in rows) == {"ca": 18, "de": 2, "zh": 2}
    assert sampler.counts == {"de": 7, "zh": 7, "ca": 8}
