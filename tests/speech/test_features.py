"""Features are made once, as far as the limit goes, and are those of the extractor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from speech_models import make_clip, make_whisper

from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech import features as module
from lorsmerge_cli.speech.features import Features, trimmed
from lorsmerge_cli.speech.loss import token_losses
from lorsmerge_cli.speech.model import SpeechModel, audio_of
from lorsmerge_cli.speech.source import find_model

ONE = 80 * 128 * 4  # bytes of one utterance, padded


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    folder = make_whisper(tmp_path_factory.mktemp("model") / "whisper")
    return find_model(folder).open(torch.float32, "cpu")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("clips")
    texts = ("the red boy", "houses" * 9, "ocells", "the the the the red red red red birds birds")
    return [
        Utterance(f"u{n}", AudioFile(make_clip(folder / f"{n}.wav", n, 0.4 + 0.3 * n)), text,
                  *(("ca", "asr"), ("de", "st"))[n % 2], 0.4 + 0.3 * n)
        for n, text in enumerate(texts)
    ]  # fmt: skip


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the audio files that are read."""
    seen: list[str] = []

    def record(row: Utterance) -> object:
        seen.append(row.audio.name)
        return audio_of(row)

    monkeypatch.setattr(module, "audio_of", record)
    return seen


def test_they_are_the_extractors(speech: SpeechModel, rows: list[Utterance]) -> None:
    expected = torch.cat([speech.features([audio_of(row)]) for row in rows])
    for limit in (0, 10 * ONE):
        kept = Features(speech, limit)
        for _ in range(2):
            assert kept.of(rows).equal(expected)
            assert kept.of(rows[::-1]).equal(expected.flip(0))


def test_a_clip_is_read_once(speech: SpeechModel, rows: list[Utterance], read: list[str]) -> None:
    kept = Features(speech, 10 * ONE)
    kept.of(rows[:2])
    kept.of(rows)
    kept.of([replace(rows[0], id="other", task="st")])
    assert sorted(read) == ["0.wav", "1.wav", "2.wav", "3.wav"]
    kept.of([replace(rows[0], start=0.1, duration=0.2)])
    assert read[-1] == "0.wav"


def size(speech: SpeechModel, rows: list[Utterance]) -> int:
    """Bytes of features without their padding."""
    return sum(trimmed(speech.features([audio_of(row)])[0]).nbytes for row in rows)


def test_no_more_is_kept_than_was_allowed(
    speech: SpeechModel, rows: list[Utterance], read: list[str]
) -> None:
    kept = Features(speech, size(speech, rows[:2]))
    kept.of(rows)
    kept.of(rows)
    assert sorted(read[4:]) == ["2.wav", "3.wav"]


def test_losses_are_those_of_each_text_by_itself(
    speech: SpeechModel, rows: list[Utterance]
) -> None:
    found = token_losses(speech, rows, Features(speech))
    assert sorted(found) == [row.id for row in rows]
    for row in rows:
        prompt = speech.prompt(row.language, row.task)
        labels = speech.labels(row)[: speech.longest_label]
        tokens = torch.tensor([prompt[:1] + labels])
        with torch.inference_mode():
            logits = speech.model(
                input_features=speech.features([audio_of(row)]), decoder_input_ids=tokens[:, :-1]
            ).logits[0]
        logs = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[len(prompt) - 1 :]
        total, count = found[row.id]
        assert count == len(logs)
        assert total == pytest.approx(-float(logs.sum()), rel=1e-5)


def test_a_smaller_limit_holds_at_once(
    speech: SpeechModel, rows: list[Utterance], read: list[str]
) -> None:
    kept = Features(speech, 10 * ONE)
    kept.of(rows)
    kept.keep_at_most(size(speech, rows))  # still enough
    kept.of(rows)
    assert len(read) == 4
    kept.keep_at_most(size(speech, rows[:2]))
    kept.of(rows)
    kept.of(rows)
    assert len(read) == 4 + 4 + 2
