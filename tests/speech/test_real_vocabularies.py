"""Labels are what openai-whisper trains on, with its own vocabularies and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from real_vocabularies import VOCABULARIES, make_real_vocabulary
from whisper_package import tokenizer_module

from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.languages import SPACELESS, WHISPER_TASKS
from lorsmerge_cli.data.utterance import Segment, Utterance
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.metrics.normalisation import CHARACTER_LANGUAGES
from lorsmerge_cli.speech.model import SpeechModel
from lorsmerge_cli.speech.source import find_model

Open = Callable[[str], SpeechModel]
# openai-whisper leaves the file of its vocabulary open
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
TEXTS = [
    "Hello world, it's me.",
    "  padded \t and\nbroken\u00a0\u2003 ",
    "L'avi no n'ha après, ¿verdad? 1.234,50 €",
    "Grüße aus Köln",
    "नमस्ते दुनिया",
    "مرحبا بالعالم",
    "你好,世界",
    "น้ำที่นี่",
    "'s a t'rrible 😀 x",
    "…",
]
CONTROLS = [
    "<|endoftext|> hello", "a <|notimestamps|> b", "<|en|>", "<|0.00|> Hi.<|2.40|>", "x<|translate|>y",
    "<|startoftranscript|><|ca|>",
]  # fmt: skip


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Open a model by the name of its vocabulary, made when it is first asked for."""
    models: dict[str, SpeechModel] = {}

    def get(name: str) -> SpeechModel:
        if name not in models:
            folder = make_real_vocabulary(tmp_path_factory.mktemp(name) / name, name)
            models[name] = find_model(folder, name=name).open(torch.float32, "cpu")
        return models[name]

    return get


def utterance(text: str, language: str, task: str = "asr") -> Utterance:
    return Utterance("u", AudioFile(Path("u.wav")), text, language, task)


def openai_tokenizer(name: str, language: str, task: str) -> Any:
    _, languages, _ = VOCABULARIES[name]
    return tokenizer_module().get_tokenizer(
        name != "english", num_languages=languages, language=language, task=WHISPER_TASKS[task]
    )


def expected(name: str, text: str, language: str, task: str, space: str) -> list[int]:
    """The labels by openai-whisper's tokenizer; `space` is what a text begins with."""
    own = openai_tokenizer(name, language, task)
    said = own.encode(space + " ".join(text.split()), disallowed_special=())
    return [*own.sot_sequence_including_notimestamps[1:], *said, own.eot]


@pytest.mark.parametrize("text", TEXTS + CONTROLS)
@pytest.mark.parametrize(
    ("name", "language", "task", "space"),
    [
        ("v2", "ca", "asr", " "), ("v2", "de", "st", " "), ("v2", "en", "asr", " "),
        ("v2", "hi", "asr", " "), ("v2", "ko", "asr", " "), ("v2", "zh", "asr", ""),
        ("v2", "zh", "st", " "), ("v2", "th", "asr", ""), ("v3", "ca", "asr", " "),
        ("v3", "yue", "asr", ""), ("v3", "ja", "st", " "), ("english", "en", "asr", " "),
    ],
)  # fmt: skip
def test_labels_are_openais(
    opened: Open, name: str, language: str, task: str, space: str, text: str
) -> None:
    speech = opened(name)
    found = speech.labels(utterance(text, language, task))
    assert found == expected(name, text, language, task, space)
    prompt = speech.prompt(language, task)
    own = openai_tokenizer(name, language, task)
    assert prompt == list(own.sot_sequence_including_notimestamps)
    text_tokens = found[len(prompt) - 1 : -1]
    assert max(text_tokens) < own.eot  # no control token is learnt
    said = speech.texts(torch.tensor([[*prompt, *text_tokens, own.eot]]))
    if "<|0.00|>" not in text:  # transformers removes what reads like a timestamp
        assert said == [" ".join(text.split())]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_the_old_way_begins_with_the_first_letter(opened: Open, name: str) -> None:
    found = opened(name).labels(utterance("Hello world", "en"), "none")
    assert found == expected(name, "Hello world", "en", "asr", "")
    assert opened(name).leading_space == "added"


@pytest.mark.parametrize("name", VOCABULARIES)
def test_no_text_has_no_tokens(opened: Open, name: str) -> None:
    own = openai_tokenizer(name, "en", "asr")
    for text in ("", " \n "):
        assert opened(name).labels(utterance(text, "en"))[-2:] == [own.no_timestamps, own.eot]


def test_a_tokenizer_that_adds_the_space_gets_no_second_one(opened: Open) -> None:
    speech = opened("v2")
    tokenizer = speech.processor.tokenizer
    plain = tokenizer.backend_tokenizer.pre_tokenizer
    wanted = speech.labels(utterance("Bon dia", "ca"))
    try:
        tokenizer.backend_tokenizer.pre_tokenizer = type(plain)(add_prefix_space=True)
        adding = SpeechModel("adding", speech.model, speech.processor)
        assert adding.leading_space == "tokenizer"
        for space in ("auto", "none"):
            assert adding.labels(utterance("Bon dia", "ca"), space) == wanted
        spelt = adding.labels(utterance("<|en|> hi", "ca"))
        assert spelt == speech.labels(utterance("<|en|> hi", "ca"))
    finally:
        tokenizer.backend_tokenizer.pre_tokenizer = plain


def test_v2_has_no_cantonese(opened: Open) -> None:
    with pytest.raises(UsageFault, match=r"v2 has no token <\|yue\|>"):
        opened("v2").labels(utterance("你好", "yue"))


def test_languages_without_spaces_are_those_scored_by_character() -> None:
    assert SPACELESS == CHARACTER_LANGUAGES


@pytest.mark.parametrize("name", ["v2", "v3", "english"])
def test_labels_with_timestamps_are_openais(opened: Open, name: str) -> None:
    language = "en" if name == "english" else "ca"
    parts = (
        Segment(0.0, 2.4, "Bon dia"),
        Segment(2.53, 29.99, "a  tothom."),
        Segment(30.0, 30.0, "x"),
    )
    row = replace(utterance("Bon dia a tothom. x", language), segments=parts)
    own = openai_tokenizer(name, language, "asr")
    expected = list(own.sot_sequence[1:])
    for part in parts:
        times = [own.timestamp_begin + round(seconds / 0.02) for seconds in part[:2]]
        text = own.encode(" " + " ".join(part.text.split()))
        expected += [times[0], *text, times[1]]
    assert opened(name).labels(row, timestamps=True) == [*expected, own.eot]


@pytest.mark.parametrize("name", ["v2", "v3"])
def test_context_is_the_end_of_what_was_said_before(opened: Open, name: str) -> None:
    speech = opened(name)
    own = openai_tokenizer(name, "ca", "asr")
    row = replace(utterance("a tothom", "ca"), previous="Bon dia")
    assert speech.context(row, 400) == [own.sot_prev, *own.encode(" Bon dia")]
    assert speech.context(row, 2) == [own.sot_prev, own.encode(" Bon dia")[-1]]
    long = replace(row, previous="paraula " * 400)
    assert len(speech.context(long, 448)) == speech.longest_label // 2
    assert speech.context(utterance("a tothom", "ca"), 400) == []
    timed = replace(row, before=(Segment(0.5, 1.0, "Bon"), Segment(1.0, 1.5, "dia")))
    first = own.timestamp_begin
    assert speech.context(timed, 400) == speech.context(row, 400)
    assert speech.context(timed, 400, timestamps=True) == [
        own.sot_prev, first + 25, *own.encode(" Bon"), first + 50, first + 50, *own.encode(" dia"),
        first + 75,
    ]  # fmt: skip
    assert speech.context(row, 400, timestamps=True) == speech.context(row, 400)
