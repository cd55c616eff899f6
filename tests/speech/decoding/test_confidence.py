"""Confidences against the same numbers in plain float64, one clip and one token at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from speech_models import MIXED, make_utterances, make_whisper
from transformers import GenerationConfig, GenerationMixin

from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech.decoding import clips, confidence
from lorsmerge_cli.speech.decoding.clips import DecodingSettings, decode_answers
from lorsmerge_cli.speech.model import SpeechModel, audio_of
from lorsmerge_cli.speech.source import find_model

TOLERANCE = 2e-4  # float32, and the rounding to four decimals


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> SpeechModel:
    return find_model(folder).open(dtype, "cpu")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    return opened(make_whisper(tmp_path_factory.mktemp("model") / "whisper"))


@pytest.fixture(scope="module")
def suppressing(tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    folder = tmp_path_factory.mktemp("model") / "whisper"
    return opened(make_whisper(folder, suppress=(2, 5)))


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return make_utterances(tmp_path_factory.mktemp("clips"))


def plain(
    speech: SpeechModel, row: Utterance, tokens: Sequence[int], settings: DecodingSettings
) -> float:
    """Return the mean log-probability of a text's tokens, from a float64 model without a cache."""
    model = speech.model.double()
    prompt = speech.prompt(row.language, row.task)
    features = speech.features([audio_of(row)]).double()
    logs = []
    for place, token in enumerate(tokens):
        said = torch.tensor([[*prompt, *tokens[:place]]])
        with torch.inference_mode():
            logits = model(features, decoder_input_ids=said).logits[0, -1].numpy()
        never = {*(settings.suppress or ())} | (
            {*(settings.begin_suppress or ())} if not place else set()
        )
        allowed = np.array([n for n in range(len(logits)) if n not in never])
        top = logits[allowed].max()
        logs.append(logits[token] - top - math.log(np.exp(logits[allowed] - top).sum()))
    speech.model.float()
    return math.fsum(logs) / len(logs)


def tokens_of(
    speech: SpeechModel, rows: Sequence[Utterance], settings: DecodingSettings
) -> dict[str, list[int]]:
    """Return the generated tokens of each row, the end included where it was reached."""
    found = {}
    end = speech.model.config.eos_token_id
    for row in rows:
        prompt = torch.tensor([speech.prompt(row.language, row.task)])
        heard = clips.encode(speech, speech.features([audio_of(row)]))
        said = clips.generate(speech, heard, prompt, settings)[0, prompt.shape[1] :].tolist()
        found[row.id] = said[: said.index(end) + 1] if end in said else said
    return found


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("max_tokens", [None, 3])
@pytest.mark.parametrize("name", ["speech", "suppressing"])
def test_confidence_is_the_mean_log_probability(
    request: pytest.FixtureRequest,
    utterances: list[Utterance],
    name: str,
    beam: int,
    max_tokens: int | None,
) -> None:
    model: SpeechModel = request.getfixturevalue(name)
    settings = DecodingSettings(
        beam, 4, max_tokens, begin_suppress=(1, 7) if name == "suppressing" else None
    ).with_lists_of(model)
    answers = decode_answers(model, utterances, settings, confidence=True)
    wanted = tokens_of(model, utterances, settings)
    lengths = set()
    for row in utterances:
        said = wanted[row.id]
        lengths.add(len(said))
        assert answers[row.id].confidence == pytest.approx(
            plain(model, row, said, settings), abs=TOLERANCE
        )
        assert answers[row.id].confidence <= 0
    assert len(lengths) > 1 or max_tokens


def test_it_is_the_score_of_the_search_where_nothing_is_suppressed(
    speech: SpeechModel, utterances: list[Utterance]
) -> None:
    settings = DecodingSettings(3).with_lists_of(speech)
    answers = decode_answers(speech, utterances, settings, confidence=True)
    for row in utterances:
        prompt = torch.tensor([speech.prompt(row.language, row.task)])
        config = GenerationConfig(
            num_beams=3, max_length=speech.longest_label, return_dict_in_generate=True,
            output_scores=True, pad_token_id=speech.model.config.pad_token_id,
            eos_token_id=speech.model.config.eos_token_id, suppress_tokens=[], begin_suppress_tokens=[],
        )  # fmt: skip
        found = GenerationMixin.generate(
            speech.model, speech.features([audio_of(row)]), generation_config=config,
            decoder_input_ids=prompt, attention_mask=torch.ones(1, 128, dtype=torch.long),
        )  # fmt: skip
        if not answers[row.id].cut:
            assert answers[row.id].confidence == pytest.approx(
                float(found.sequences_scores[0]), abs=TOLERANCE
            )


def test_it_does_not_depend_on_the_batch_or_on_how_logits_are_split(
    speech: SpeechModel, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DecodingSettings(2, 10)
    together = decode_answers(speech, utterances, settings, confidence=True)
    alone = decode_answers(speech, utterances, replace(settings, batch_size=1), confidence=True)
    monkeypatch.setattr(confidence, "LARGEST_LOGITS", 1)
    split = decode_answers(speech, utterances, settings, confidence=True)
    assert split == together
    for name, answer in together.items():
        assert alone[name].text == answer.text
        assert alone[name].confidence == pytest.approx(answer.confidence, abs=TOLERANCE)


def test_texts_are_the_same_and_without_confidence_by_default(
    speech: SpeechModel, utterances: list[Utterance]
) -> None:
    settings = DecodingSettings(2)
    asked = decode_answers(speech, utterances, settings, confidence=True)
    usual = decode_answers(speech, utterances, settings)
    assert {name: answer._replace(confidence=None) for name, answer in asked.items()} == usual


def test_bfloat16_comes_near(tmp_path: Path, utterances: list[Utterance]) -> None:
    folder = make_whisper(tmp_path / "whisper")
    model = opened(folder, torch.bfloat16)
    settings = DecodingSettings(1).with_lists_of(model)
    answers = decode_answers(model, utterances, settings, confidence=True)
    wanted = tokens_of(model, utterances, settings)
    for row in utterances:
        assert answers[row.id].confidence == pytest.approx(
            plain(opened(folder), row, wanted[row.id], settings), abs=0.3
        )


def test_outputs_that_are_no_numbers_have_no_confidence(
    tmp_path: Path, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(make_whisper(tmp_path / "whisper"))
    real = model.model.proj_out.forward
    monkeypatch.setattr(clips, "generate", lambda *given: torch.cat([given[2], given[2]], 1))
    monkeypatch.setattr(model.model.proj_out, "forward", lambda hidden: real(hidden) * torch.nan)
    (answer,) = decode_answers(model, utterances[:1], DecodingSettings(1), confidence=True).values()
    assert answer.confidence is None


def test_a_model_without_its_weights_has_the_prompts_and_lists_of_the_whole_one(
    tmp_path: Path,
) -> None:
    source = find_model(make_whisper(tmp_path / "whisper", suppress=(3,)))
    whole = source.open(torch.float32, "cpu")
    for pair in MIXED:
        assert source.without_weights.prompt(*pair) == whole.prompt(*pair)
    asked = DecodingSettings(1)
    assert asked.with_lists_of(source.without_weights) == asked.with_lists_of(whole)
    assert asked.with_lists_of(whole).suppress == (3,)
