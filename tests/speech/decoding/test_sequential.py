"""Recordings of any length: our windows, rules and moves against openai-whisper's own code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from openai_algorithm import openai_model, openai_transcribe, whisper_package
from real_vocabularies import make_real_vocabulary
from speech_models import FACTORS, make_clip, make_whisper
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.recording import open_recording
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.speech.decoding import window_search
from lorsmerge_cli.speech.decoding.alignment import AFTER, BEFORE, align_words, need_alignment
from lorsmerge_cli.speech.decoding.clips import encode
from lorsmerge_cli.speech.decoding.sequential import Heard, LongSettings, ToHear, hear
from lorsmerge_cli.speech.decoding.timestamps import Rules
from lorsmerge_cli.speech.decoding.windows import Spectrogram, Windows
from lorsmerge_cli.speech.engines import ENGINES
from lorsmerge_cli.speech.model import SpeechModel, Timestamps
from lorsmerge_cli.speech.source import find_model

# openai-whisper leaves the file of its vocabulary open
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]
RATE = 16_000
END = 50257  # of OpenAI's multilingual vocabularies
MOST = 24  # tokens of a window: their code and ours are slow on a CPU
# they let languages through, which only a model of random weights says
LIMITS = {"sample_len": MOST, "suppress_tokens": [-1, *range(50259, 50358)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper of random weights that says many words, with OpenAI's vocabulary and window."""
    folder = make_real_vocabulary(tmp_path_factory.mktemp("real") / "model", "v2")
    sizes = {
        "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 1,
        "decoder_attention_heads": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    }  # fmt: skip
    torch.manual_seed(1)
    model: Any = WhisperForConditionalGeneration(
        WhisperConfig(**WhisperConfig.from_pretrained(folder).to_dict() | sizes)
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            for part, factor in FACTORS.items():
                if part in name and weight.requires_grad:
                    weight.mul_(factor)
        said = torch.randint(END, (16, 32))
        usual = model.eval().model(
            torch.randn(16, 80, 3000), decoder_input_ids=said
        ).last_hidden_state  # fmt: skip
        model.model.decoder.layer_norm.bias.sub_(usual.mean((0, 1)))
        model.model.decoder.embed_tokens.weight[END] *= 1.5
        # a time is likelier than any word at some steps, and at some not
        model.model.decoder.embed_tokens.weight[END + 107 :] *= 0.6
    tokenizer = whisper_package().tokenizer.get_tokenizer(True, num_languages=99, language="en")
    config = GenerationConfig.from_pretrained(folder)
    config.suppress_tokens = list(tokenizer.non_speech_tokens)
    config.begin_suppress_tokens = [220, END]
    model.generation_config = config
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speech(folder: Path) -> SpeechModel:
    return find_model(folder).open(torch.float32, "cpu")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three minutes and some samples."""
    return make_clip(tmp_path_factory.mktemp("audio") / "three.wav", 3, 183.137)


def wave_of(path: Path) -> Any:
    return soundfile.read(path, dtype="float32")[0]


def assert_same(ours: Heard, theirs: dict[str, Any]) -> None:
    """The same segments, but for empty ones, which we drop, and ends after the recording's."""
    last = ours.seconds
    kept = [s for s in theirs["segments"] if s["text"].strip() and s["start"] < last]
    assert [s.tokens for s in ours.segments] == [tuple(s["tokens"]) for s in kept]
    assert [s.text for s in ours.segments] == [s["text"] for s in kept]
    for mine, other in zip(ours.segments, kept, strict=True):
        assert mine.seek == other["seek"]
        assert mine.start == pytest.approx(other["start"], abs=1e-9)
        assert mine.end == pytest.approx(min(other["end"], last), abs=1e-9)
        assert mine.temperature == other["temperature"]
        assert mine.avg_logprob == pytest.approx(other["avg_logprob"], abs=1e-4)
        assert mine.no_speech_prob == pytest.approx(other["no_speech_prob"], abs=1e-5)
        assert mine.compression_ratio == pytest.approx(other["compression_ratio"])
    assert ours.language == theirs["language"]


CASES = {
    "greedy": ({"beam": 1}, {}),
    "beams": ({"beam": 3}, {"beam_size": 3}),
    "without condition": ({"beam": 1, "condition": False}, {"condition_on_previous_text": False}),
    "without times": ({"beam": 1, "timestamps": False}, {"without_timestamps": True}),
    "silent by threshold": (
        {"beam": 1, "no_speech": -1.0, "logprob": -1.0},
        {"no_speech_threshold": -1.0, "logprob_threshold": -1.0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_three_minutes_are_heard_as_openai_hears_them(
    speech: SpeechModel, folder: Path, recording: Path, case: str
) -> None:
    ours, theirs = CASES[case]
    settings: dict[str, Any] = {"temperatures": (0.0,), "logprob": -1e9, "max_tokens": MOST} | ours
    language = None if case == "greedy" else "ca"
    (heard,) = hear(speech, [ToHear(open_recording(recording), language)], LongSettings(**settings))
    other = openai_transcribe(
        openai_model(folder), wave_of(recording),
        **{"temperature": (0.0,), "logprob_threshold": -1e9, "language": language} | LIMITS
        | theirs,
    )  # fmt: skip
    if case == "silent by threshold":
        assert heard.skipped
    else:
        assert len(heard.segments) > 5
    assert_same(heard, other)


@pytest.mark.parametrize("case", [case for case in CASES if case != "beams"])
def test_ctranslate2_hears_as_pytorch_does(
    speech: SpeechModel, folder: Path, recording: Path, case: str
) -> None:
    """Beams end at other times there, and samples come from another generator."""
    pytest.importorskip("ctranslate2")
    decoder = ENGINES["ct2"].open(find_model(folder), "float32", "cpu")
    settings: dict[str, Any] = {"temperatures": (0.0,), "logprob": -1e9, "max_tokens": MOST}
    asked = LongSettings(**settings | CASES[case][0])
    language = None if case == "greedy" else "ca"
    # both have texts so far of one length and of several, as windows are one or two at a time
    items = [
        ToHear(open_recording(recording), language),
        ToHear(replace(open_recording(recording), start=40.0, duration=70.0), language),
    ]
    ours, theirs = (hear(speech, items, asked, ear=ear) for ear in (None, decoder.ear()))
    for mine, other in zip(ours, theirs, strict=True):
        assert [(s.tokens, s.start, s.end, s.seek) for s in mine.segments] == [
            (s.tokens, s.start, s.end, s.seek) for s in other.segments
        ]
        for a, b in zip(mine.segments, other.segments, strict=True):
            assert a.avg_logprob == pytest.approx(b.avg_logprob, abs=1e-4)
            assert a.no_speech_prob == pytest.approx(b.no_speech_prob, abs=1e-5)
        assert (mine.language, mine.skipped, mine.cut) == (other.language, other.skipped, other.cut)
        assert mine.probability == (
            other.probability and pytest.approx(other.probability, abs=1e-4)
        )


def test_ctranslate2_falls_back_by_samples_of_its_own(folder: Path, recording: Path) -> None:
    pytest.importorskip("ctranslate2")
    decoder = ENGINES["ct2"].open(find_model(folder), "float32", "cpu")
    settings = LongSettings(
        beam=1, best_of=2, temperatures=(0.0, 0.4), logprob=0.0, max_tokens=MOST
    )
    part = replace(open_recording(recording), duration=40.0)
    (heard,) = hear(decoder.speech, [ToHear(part, "ca")], settings, ear=decoder.ear())
    assert heard.failed == heard.windows > 0
    assert {segment.temperature for segment in heard.segments} == {0.4}


def test_the_last_window_ends_in_silence_and_not_in_zeros(
    speech: SpeechModel, folder: Path, recording: Path
) -> None:
    """The one known difference: theirs are the zeros of a spectrogram, which are a loud noise."""
    settings = LongSettings(beam=1, temperatures=(0.0,), logprob=-1e9, max_tokens=MOST)
    (heard,) = hear(speech, [ToHear(open_recording(recording), "ca")], settings)
    other = openai_transcribe(
        openai_model(folder), wave_of(recording), silence_after=False, temperature=(0.0,),
        logprob_threshold=-1e9, language="ca", **LIMITS,
    )  # fmt: skip
    whole = 18_313 - 3_000
    ours = [s.tokens for s in heard.segments if s.seek <= whole]
    assert ours == [
        tuple(s["tokens"]) for s in other["segments"] if s["seek"] <= whole and s["text"].strip()
    ]
    assert ours


def test_failing_texts_are_decoded_again_as_openai_does_it(
    speech: SpeechModel, folder: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the draws of both replaced by one that can be compared."""

    def second(logits: torch.Tensor) -> torch.Tensor:
        return logits.topk(2).indices[:, 1]

    class Second:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

        def sample(self) -> torch.Tensor:
            return second(self.logits)

    whisper = whisper_package()
    import sys

    monkeypatch.setattr(sys.modules[whisper.decode.__module__], "Categorical", Second)
    monkeypatch.setattr(window_search, "draw", lambda logits, generator: second(logits))
    settings = LongSettings(
        beam=1, best_of=2, temperatures=(0.0, 0.4, 0.8), logprob=-3.0, compression_ratio=1.1,
        max_tokens=MOST,
    )  # fmt: skip
    (heard,) = hear(speech, [ToHear(open_recording(recording), "ca")], settings)
    other = openai_transcribe(
        openai_model(folder), wave_of(recording), temperature=(0.0, 0.4, 0.8),
        logprob_threshold=-3.0, compression_ratio_threshold=1.1, best_of=2, language="ca", **LIMITS,
    )  # fmt: skip
    assert_same(heard, other)
    assert {segment.temperature for segment in heard.segments} != {0.0}


@pytest.mark.parametrize("seconds", [0.005, 0.0126, 3.3, 61.37])
def test_features_by_window_are_those_of_the_whole(
    speech: SpeechModel, tmp_path: Path, seconds: float
) -> None:
    clip = make_clip(tmp_path / "clip.wav", 1, seconds)
    spectrogram = Spectrogram(speech)
    recording = open_recording(clip)
    length = spectrogram.length(recording)
    wave = wave_of(clip)
    assert length.samples == len(wave)
    padded = np.concatenate([wave, np.zeros(30 * RATE, np.float32)])
    whole = whisper_package().log_mel_spectrogram(padded)
    windows = Windows(spectrogram, recording, length)
    assert windows.frames == max(1, len(wave) // 160)
    for seek in sorted({0, windows.frames // 3, windows.frames // 2, max(0, windows.frames - 1)}):
        torch.testing.assert_close(
            windows.at(seek), whole[:, seek : seek + 3000], atol=1e-6, rtol=0
        )


def test_recordings_heard_together_are_heard_as_alone(tmp_path: Path) -> None:
    small = find_model(make_whisper(tmp_path / "m", times=True, seed=3)).open(torch.float32, "cpu")
    files = [
        make_clip(tmp_path / f"{n}.wav", n, seconds) for n, seconds in enumerate((7.3, 2, 11.1))
    ]
    items = [ToHear(open_recording(file), None) for file in files]
    settings = LongSettings(beam=2, temperatures=(0.0, 0.7), batch_size=3)
    together = hear(small, items, settings)
    alone = [hear(small, [item], settings)[0] for item in items]
    assert [h.text for h in together] == [h.text for h in alone]
    assert [[s.tokens for s in h.segments] for h in together] == [
        [s.tokens for s in h.segments] for h in alone
    ]
    assert any(s.temperature for h in alone for s in h.segments)
    for one in alone:
        ends = [0.0, *(s.end for s in one.segments)]
        assert all(s.start < s.end for s in one.segments)
        assert max(ends) <= one.seconds


def test_rules_are_openais(speech: SpeechModel) -> None:
    times = speech.timestamps
    assert times == Timestamps(50364, 1501, 0.02)
    decoding = __import__("sys").modules[whisper_package().decode.__module__]
    tokenizer = whisper_package().tokenizer.get_tokenizer(True, num_languages=99, language="en")
    theirs = decoding.ApplyTimestampRules(tokenizer, 3, 50)
    rules = Rules(51865, END, [50363], [], times)
    begin = times.begin
    generator = torch.Generator().manual_seed(0)
    for said in (
        [], [begin], [begin + 7, 11], [begin, 11, 12], [begin, 11, begin + 9], [begin, 1, begin + 9, begin + 9],
        [begin, 1, begin + 9, begin + 20, 5], [begin + 50, begin + 50], [begin, 3, begin + 1500],
    ):  # fmt: skip
        logits = torch.randn(2, 51865, generator=generator) * 3
        logits[1, begin:] += 9
        logits[:, END + 1 : begin] = -torch.inf
        expected = logits.clone()
        theirs.apply(expected, torch.tensor([[1, 2, 3, *said]] * 2))
        mine = rules.apply(logits, torch.tensor([said] * 2, dtype=torch.long).reshape(2, len(said)))
        assert torch.equal(mine, expected), said


def test_words_are_aligned_as_openai_does_it(
    speech: SpeechModel, folder: Path, recording: Path
) -> None:
    model = openai_model(folder)
    model.alignment_heads = torch.tensor([[True], [True]]).to_sparse()
    speech.model.generation_config.alignment_heads = [[0, 0], [1, 0]]
    tokenizer = whisper_package().tokenizer.get_tokenizer(
        True, num_languages=99, language="ca", task="transcribe"
    )
    text = " Bon dia, com va? (Molt) bé: l'any 2024 \U0001f600 vindrà."
    tokens = tokenizer.encode(text)
    spectrogram = Spectrogram(speech)
    clip = open_recording(recording)
    window = Windows(spectrogram, clip, spectrogram.length(clip)).at(500)
    module = __import__("whisper.timing", fromlist=["find_alignment"])
    theirs = module.find_alignment(model, tokenizer, tokens, window, 2500)
    module.merge_punctuations(theirs, BEFORE, AFTER)
    ours = align_words(
        speech, encode(speech, window[None]), speech.prompt("ca", "asr"), tokens, 1250, "ca"
    )
    theirs = [word for word in theirs if word.word]
    assert [word.word for word in ours] == [word.word for word in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.tokens, mine.start / 50, mine.end / 50) == (
            len(other.tokens), other.start, other.end,
        )  # fmt: skip
        assert mine.probability == pytest.approx(other.probability, rel=1e-4)
    assert "".join(word.word for word in ours) == text
    assert len({word.start for word in ours}) > 3


def test_words_of_segments(speech: SpeechModel, recording: Path) -> None:
    speech.model.generation_config.alignment_heads = [[0, 0], [1, 0]]
    settings = LongSettings(beam=1, temperatures=(0.0,), logprob=-1e9, max_tokens=MOST, words=True)
    (heard,) = hear(speech, [ToHear(open_recording(recording), "ca")], settings)
    for segment in heard.segments:
        assert segment.words is not None
        assert all(word.start <= word.end <= heard.seconds for word in segment.words)
    words = [word for segment in heard.segments for word in segment.words or ()]
    assert len(words) > 10


def test_a_model_without_alignment_heads_is_refused(tmp_path: Path) -> None:
    source = find_model(make_whisper(tmp_path / "m", times=True))
    with pytest.raises(UsageFault, match="no alignment_heads in its generation_config"):
        need_alignment(source.without_weights)


def test_tokens_of_texts_are_not_taken_for_times(tmp_path: Path) -> None:
    folder = make_whisper(tmp_path / "m", times=True)
    file = folder / "tokenizer.json"
    content = file.read_text().replace("<|0.00|>", "zero")  # what follows is a token of the text
    file.write_text(content)
    speech = find_model(folder).without_weights
    assert speech.timestamps is None
    with pytest.raises(UsageFault, match="no timestamps in its vocabulary"):
        speech.labels(Utterance("a", AudioFile(Path("a.wav")), "red", "ca", "asr"), timestamps=True)


def test_a_vocabulary_without_times_is_refused(tmp_path: Path) -> None:
    source = find_model(make_whisper(tmp_path / "m"))
    assert source.without_weights.timestamps is None
    clip = open_recording(make_clip(tmp_path / "a.wav", 1, 1.0))
    with pytest.raises(UsageFault, match="no timestamps in its vocabulary"):
        hear(source.open(torch.float32, "cpu"), [ToHear(clip, "ca")], LongSettings())


@pytest.mark.parametrize(
    "settings",
    [{"beam": 0}, {"temperatures": ()}, {"temperatures": (-1.0,)}, {"logprob": float("nan")}],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageFault):
        LongSettings(**settings)
