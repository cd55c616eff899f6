"""Decoding says what transformers says to each utterance by itself, and survives small memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from speech_models import LONGEST, make_tuned, make_utterances, make_whisper
from torch import Tensor

from lorsmerge_cli.data.languages import WHISPER_TASKS
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError, Mismatch, UsageFault
from lorsmerge_cli.speech import memory
from lorsmerge_cli.speech.decoding import clips
from lorsmerge_cli.speech.decoding.clips import (
    DecodingSettings,
    decode,
    decode_answers,
)
from lorsmerge_cli.speech.decoding.stepper import Stepper
from lorsmerge_cli.speech.model import SpeechModel, audio_of
from lorsmerge_cli.speech.source import find_model

Generate = Callable[..., Tensor]


def opened(folder: Path, name: str = "") -> SpeechModel:
    return find_model(folder, name=name).open(torch.float32, "cpu")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    return opened(make_whisper(tmp_path_factory.mktemp("model") / "whisper"), "tiny")


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return make_utterances(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tokens of every batch that is decoded, as they come."""
    seen: list[Tensor] = []
    real = clips.generate

    def record(*arguments: Any) -> Tensor:
        seen.append(real(*arguments))
        return seen[-1]

    monkeypatch.setattr(clips, "generate", record)
    return seen


def in_order(utterances: list[Utterance]) -> list[Utterance]:
    return sorted(utterances, key=lambda row: (-(row.duration or 0), row.id))


def said(tokens: Tensor, end: int, prompt: int = 4) -> list[int]:
    """The tokens between the prompt and the end."""
    text = tokens[prompt:].tolist()
    return text[: text.index(end)] if end in text else text


def plain_tokens(
    speech: SpeechModel, row: Utterance, beam: int, most: int | None = None
) -> list[int]:
    """What transformers' own call makes of one utterance."""
    model, end = speech.model, speech.model.config.eos_token_id
    tokens = model.generate(
        speech.features([audio_of(row)]), language=row.language, task=WHISPER_TASKS[row.task],
        num_beams=beam, do_sample=False, max_new_tokens=most,
    )[0]  # fmt: skip
    prompt = speech.prompt(row.language, row.task)
    return said(tokens, end, 4 if tokens[:4].tolist() == prompt else 0)


@pytest.mark.parametrize("batch_size", [1, 4, 10])
@pytest.mark.parametrize("beam", [1, 4])
def test_a_mixed_batch_says_token_for_token_what_transformers_says_alone(
    speech: SpeechModel,
    utterances: list[Utterance],
    batches: list[Tensor],
    beam: int,
    batch_size: int,
) -> None:
    texts = decode(speech, utterances, DecodingSettings(beam, batch_size))
    end = speech.model.config.eos_token_id
    found = [said(row, end) for batch in batches for row in batch]
    expected = [plain_tokens(speech, row, beam) for row in in_order(utterances)]
    assert found == expected
    assert len({tuple(tokens) for tokens in expected}) > 5  # or the test says nothing
    assert len({len(tokens) for tokens in expected}) > 1
    ids = [row.id for row in in_order(utterances)]
    spoken = speech.texts(torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, expected)),
                                                          batch_first=True, padding_value=end))  # fmt: skip
    assert texts == dict(zip(ids, spoken, strict=True))


def test_beams_matter(speech: SpeechModel, utterances: list[Utterance]) -> None:
    greedy, wide = (decode(speech, utterances, DecodingSettings(beam)) for beam in (1, 4))
    assert greedy != wide


@pytest.mark.parametrize("changes", [{"language": "ca"}, {"task": "st"}])
def test_language_and_task_matter(
    speech: SpeechModel, utterances: list[Utterance], changes: dict[str, str]
) -> None:
    rows = [replace(row, language="de", task="asr") for row in utterances]
    others = [replace(row, **changes) for row in rows]
    assert decode(speech, rows, DecodingSettings(1)) != decode(speech, others, DecodingSettings(1))


@pytest.mark.parametrize("most", [None, 1, 6, 9])
@pytest.mark.parametrize("beam", [1, 2, 9])
def test_clips_that_leave_the_batch_change_no_others_text(
    speech: SpeechModel,
    utterances: list[Utterance],
    batches: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    beam: int,
    most: int | None,
) -> None:
    left: list[int] = []
    real = Stepper.keep

    def keep(self: Stepper, windows: Tensor) -> None:
        left.append(len(windows))
        real(self, windows)

    monkeypatch.setattr(Stepper, "keep", keep)
    decode(speech, utterances, DecodingSettings(beam, len(utterances), max_tokens=most))
    end = speech.model.config.eos_token_id
    assert [said(row, end) for row in batches[0]] == [
        plain_tokens(speech, row, beam, most) for row in in_order(utterances)
    ]
    if most is None:
        assert left
    assert left == sorted(left, reverse=True)


def test_limits_of_the_models_own_generation_config_change_nothing(
    speech: SpeechModel, utterances: list[Utterance]
) -> None:
    before = decode(speech, utterances, DecodingSettings(2))
    own = speech.model.generation_config
    limits = {"max_new_tokens": 2, "min_length": 12, "num_return_sequences": 2,
              "return_dict_in_generate": True, "length_penalty": 3.0}  # fmt: skip
    try:
        for name, value in limits.items():
            speech.model.generation_config = deepcopy(own)
            setattr(speech.model.generation_config, name, value)
            assert decode(speech, utterances, DecodingSettings(2)) == before
            assert getattr(speech.model.generation_config, name) == value
    finally:
        speech.model.generation_config = own


def test_progress_is_told_every_utterance_longest_first(
    speech: SpeechModel, utterances: list[Utterance]
) -> None:
    told: list[tuple[str, str]] = []
    texts = decode(
        speech, utterances, DecodingSettings(1, 3), lambda row, text: told.append((row.id, text))
    )
    assert [name for name, _ in told] == [row.id for row in in_order(utterances)]
    assert dict(told) == texts


@pytest.mark.parametrize("positions", [3, 4])
def test_a_decoder_without_room_for_a_text_is_told(
    speech: SpeechModel,
    utterances: list[Utterance],
    monkeypatch: pytest.MonkeyPatch,
    positions: int,
) -> None:
    monkeypatch.setattr(speech.model.config, "max_target_positions", positions)
    with pytest.raises(Mismatch, match=f"has {positions} positions, and the prompt takes 4"):
        decode(speech, utterances, DecodingSettings(4))


def test_nothing_to_decode(speech: SpeechModel) -> None:
    assert decode(speech, [], DecodingSettings(4)) == {}


# --- memory ---------------------------------------------------------------------------------------


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Let batches over a size run out of memory; the list has the sizes that were tried."""

    def limit(largest: int) -> list[int]:
        tried: list[int] = []
        real = clips.generate

        def generate(speech: SpeechModel, heard: Tensor, *rest: Any) -> Tensor:
            tried.append(len(heard))
            if len(heard) > largest:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(speech, heard, *rest)

        monkeypatch.setattr(clips, "generate", generate)
        return tried

    return limit


def test_out_of_memory_halves_the_batch_and_changes_nothing(
    speech: SpeechModel, utterances: list[Utterance], small_memory: Callable
) -> None:
    expected = decode(speech, utterances, DecodingSettings(4))
    tried = small_memory(3)
    told: list[str] = []
    found = decode(
        speech, utterances, DecodingSettings(4, 8), lambda row, text: told.append(row.id)
    )
    assert found == expected
    assert tried == [8, 4, 2, 2, 2, 2, 2]
    assert sorted(told) == sorted(expected)


def test_too_little_memory_for_one_utterance_is_an_error(
    speech: SpeechModel, utterances: list[Utterance], small_memory: Callable
) -> None:
    tried = small_memory(0)
    with pytest.raises(LorsmergeError, match=r"tiny does not fit into memory.*smaller --beam"):
        decode(speech, utterances, DecodingSettings(4, 4))
    assert tried == [4, 2, 1]


@pytest.mark.parametrize(("beam", "pages"), [(1, 10**6), (20, 10**6), (20, 2000), (20, 0)])
def test_a_fitting_batch_keeps_to_its_share_of_memory(
    speech: SpeechModel, monkeypatch: pytest.MonkeyPatch, beam: int, pages: int
) -> None:
    monkeypatch.setattr(memory, "ROOT", Path("nowhere"))  # where nothing tells it better
    free = {"SC_AVPHYS_PAGES": pages, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", lambda name: free[name])
    size = clips.fitting_batch(speech, beam)
    config = speech.model.config
    positions = 64 + beam * config.max_target_positions  # heard once, and the text of each beam
    each = 2 * 2 * positions * 32 * 4  # keys and values, layers, positions, units, bytes
    each += 4 * 4 * config.vocab_size * beam  # scores, their copies
    allowed = 0.3 * 4096 * pages
    assert 1 <= size <= 64
    assert size == 1 or size * each <= allowed
    assert size == 64 or (size + 1) * each > allowed


def test_free_memory_is_told_on_systems_that_do_not_count_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < clips.free_memory() < whole
    monkeypatch.setattr(os, "sysconf_names", {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 2})  # macOS's
    assert clips.free_memory() == pytest.approx(whole / 2, rel=1e-3)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 4])
def test_suppressed_tokens_are_never_said(
    speech: SpeechModel, utterances: list[Utterance], batches: list[Tensor], beam: int
) -> None:
    decode(speech, utterances, DecodingSettings(beam))
    end, free = speech.model.config.eos_token_id, batches.pop()
    never = max(said(free[0], end), key=said(free[0], end).count)
    firsts = tuple({int(row[4]) for row in free})
    decode(speech, utterances, DecodingSettings(beam, suppress=(never,), begin_suppress=firsts))
    assert never in free[:, 4:]
    assert never not in batches[0][:, 4:]
    assert not {int(row[4]) for row in batches[0]} & set(firsts)
    assert set(batches[0][:, 5:].flatten().tolist()) & (set(firsts) - {never})


@pytest.mark.parametrize("beam", [1, 4])
def test_suppressed_tokens_that_the_model_does_not_have_change_nothing(
    speech: SpeechModel, utterances: list[Utterance], beam: int
) -> None:
    free, others = (
        decode_answers(
            speech,
            utterances,
            DecodingSettings(beam, suppress=listed, begin_suppress=listed),
            confidence=True,
        )
        for listed in ((), (-1, 10**6))  # OpenAI's -1 stands for no token
    )
    assert free == others


def test_lists_left_open_are_the_models_own(tmp_path: Path) -> None:
    speech = opened(make_whisper(tmp_path / "whisper", suppress=(1, 5)))
    filled = DecodingSettings(begin_suppress=(7,)).with_lists_of(speech)
    assert (filled.suppress, filled.begin_suppress) == ((1, 5), (7,))


def test_an_empty_list_is_not_filled_up_from_the_model(
    tmp_path: Path, speech: SpeechModel, utterances: list[Utterance]
) -> None:
    texts = decode(speech, utterances, DecodingSettings(1))
    words = {word for text in texts.values() for word in text.split()}
    known = speech.processor.tokenizer.get_vocab()
    common = tuple(number for token, number in known.items() if token.removeprefix("Ġ") in words)
    own = opened(make_whisper(tmp_path / "whisper", suppress=common))
    assert decode(own, utterances, DecodingSettings(1)) != texts
    assert decode(own, utterances, DecodingSettings(1, suppress=(), begin_suppress=())) == texts


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, LONGEST - 4, 400])
@pytest.mark.parametrize("beam", [1, 4])
def test_max_tokens_counts_new_ones_and_ends_at_the_models_limit(
    speech: SpeechModel,
    utterances: list[Utterance],
    batches: list[Tensor],
    max_tokens: int,
    beam: int,
) -> None:
    decode(speech, utterances, DecodingSettings(beam, max_tokens=max_tokens))
    assert batches[0].shape[1] == min(4 + max_tokens, LONGEST)


@pytest.mark.parametrize("batch_size", [1, 10])
@pytest.mark.parametrize("max_tokens", [3, None])
def test_a_text_without_its_end_is_cut(
    speech: SpeechModel, utterances: list[Utterance], max_tokens: int | None, batch_size: int
) -> None:
    found = decode_answers(
        speech, utterances, DecodingSettings(1, batch_size, max_tokens=max_tokens)
    )
    end = speech.model.config.eos_token_id
    whole = {row.id: plain_tokens(speech, row, 1) for row in utterances}
    longest = min(max_tokens or LONGEST, LONGEST - 4)
    # a text of n tokens takes n + 1 with its end
    expected = {name: len(tokens) + 1 > longest for name, tokens in whole.items()}
    assert {name: answer.cut for name, answer in found.items()} == expected
    assert len(set(expected.values())) == 2
    for name, answer in found.items():
        tokens = torch.tensor([[*whole[name][:longest], end]])
        assert answer.text == speech.texts(tokens)[0]


def test_a_digest_tells_lists_of_suppressed_tokens_apart() -> None:
    lists = [((), ()), ((1, 2), ()), ((1,), (2,)), ((), (1, 2)), ((2, 1), ())]
    digests = {DecodingSettings(suppress=a, begin_suppress=b).suppress_digest() for a, b in lists}
    assert len(digests) == len(lists)
    assert all(len(digest) == 8 for digest in digests)


def test_a_language_that_the_model_lacks_is_named(
    speech: SpeechModel, utterances: list[Utterance]
) -> None:
    with pytest.raises(UsageFault, match=r"tiny has no token <\|fr\|>"):
        decode(speech, [replace(utterances[0], language="fr")], DecodingSettings(1))


def test_a_fine_tune_says_something_else(
    speech: SpeechModel, utterances: list[Utterance], tmp_path: Path
) -> None:
    make_whisper(tmp_path / "base")
    tuned = opened(make_tuned(tmp_path / "base", tmp_path / "tuned", seed=1))
    settings = DecodingSettings(1)
    assert decode(tuned, utterances, settings) != decode(speech, utterances, settings)


@pytest.mark.parametrize("settings", [{"beam": 0}, {"batch_size": -1}, {"max_tokens": 0}])
def test_numbers_below_one_are_wrong_usage(settings: dict[str, int]) -> None:
    with pytest.raises(UsageFault, match="from 1 on"):
        DecodingSettings(**settings)
