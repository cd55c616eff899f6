"""`lorsmerge transcribe -o`: recordings of any length, as a user types it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pysrt
import pytest
import soundfile
import webvtt
from speech_models import make_clip, make_tuned, make_whisper

from lorsmerge_cli import transcribe_recordings
from lorsmerge_cli.errors import Interrupted, LorsmergeError, UnreadableFile
from lorsmerge_cli.operations.transcribe import files as show
from lorsmerge_cli.operations.transcribe import made, recordings
from lorsmerge_cli.speech.decoding.sequential import LongSettings

WORK, USAGE, INTERRUPTED = 1, 2, 130
QUICK = " --device cpu --beam 1 --temperatures 0 --logprob=-99"


@pytest.fixture(scope="module")
def speech_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timed/, its fine-tune tuned/ and untimed/, talks/{a,b,c}.wav, sounds of other rates, and what is no sound."""
    folder = tmp_path_factory.mktemp("speech")
    make_whisper(folder / "timed", times=True, seed=3)
    make_tuned(folder / "timed", folder / "tuned", seed=1)
    make_whisper(folder / "untimed")
    (folder / "talks").mkdir()
    for number, (name, seconds) in enumerate([("a", 7.3), ("b", 3.0), ("c", 5.2)]):
        make_clip(folder / "talks" / f"{name}.wav", number, seconds)
    (folder / "talks" / "notes.txt").write_text("no sound")
    for rate in (8_000, 44_100, 192_000):
        make_clip(folder / f"at{rate}.wav", 5, 4.0, rate)
    left, right = (soundfile.read(folder / "talks" / f"{n}.wav")[0][: 3 * 16_000] for n in "ac")
    soundfile.write(folder / "call.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    raw = (folder / "talks" / "a.wav").read_bytes()
    (folder / "cut.wav").write_bytes(raw[: len(raw) // 2])
    (folder / "-film.mp4").write_text("a film")
    soundfile.write(folder / "silence.wav", np.zeros(5 * 16_000), 16_000)
    return folder


@pytest.fixture
def ffmpeg(files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of this name on PATH that writes one second of samples and notes its arguments."""
    folder = files / "bin"
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(
        f"#!{sys.executable}\nimport json, struct, sys\n"
        f"json.dump(sys.argv[1:], open({str(folder / 'said')!r}, 'w'))\n"
        "if 'silent' in ' '.join(sys.argv): print('no such stream', file=sys.stderr); sys.exit(1)\n"
        "sys.stdout.buffer.write(struct.pack('<16000f', *[0.1 * (n % 80 < 40) for n in range(16000)]))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "said"


def message(text: str) -> str:
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def test_a_recording_becomes_subtitles(files: Path, succeed: Callable) -> None:
    ended = succeed("lorsmerge transcribe timed -a talks/a.wav -o a.srt" + QUICK)
    cues = pysrt.open("a.srt", encoding="utf-8")
    assert len(cues) > 1
    assert all(cue.start <= cue.end and cue.end.ordinal <= 7300 for cue in cues)
    assert [c.start for c in cues] == sorted(c.start for c in cues)
    assert "talks/a.wav" in ended.out
    assert "%)" in ended.out  # how sure the model is of the language


def test_every_format_says_the_same(files: Path, succeed: Callable) -> None:
    formats = ["txt", "srt", "vtt", "tsv", "json"]
    wanted = " ".join(f"--as {name}" for name in formats)
    line = f"lorsmerge transcribe timed -a talks/a.wav -o out {wanted} --language ca --json"
    document = json.loads(succeed(line + QUICK).out)
    (item,) = document["recordings"]
    assert sorted(item["files"]) == sorted(f"out/a.{name}" for name in formats)
    texts = Path("out/a.txt").read_text().splitlines()
    assert [cue.text for cue in pysrt.open("out/a.srt")] == texts
    assert [cue.text for cue in webvtt.read("out/a.vtt")] == texts
    assert [
        s["text"].strip() for s in json.loads(Path("out/a.json").read_text())["segments"]
    ] == texts
    rows = Path("out/a.tsv").read_text().splitlines()
    assert [row.split("\t")[2] for row in rows[1:]] == texts
    assert (item["language"], item["probability"], item["seconds"]) == ("ca", None, 7.3)


def test_a_folder_is_transcribed_and_resumed(
    files: Path, succeed: Callable, shell: Callable
) -> None:
    line = "lorsmerge transcribe timed -a talks -o subs" + QUICK
    succeed(line)
    first = {path.name: path.read_bytes() for path in Path("subs").iterdir()}
    assert sorted(first) == ["a.srt", "b.srt", "c.srt", "transcripts.journal"]
    refused = shell(line)
    assert refused.code == WORK
    assert "--resume skips recordings that are done" in message(refused.err)
    Path("subs/b.srt").unlink()
    ended = succeed(f"{line} --resume")
    assert "2 recordings have transcripts already" in ended.out
    assert transcripts() == {name: first[name] for name in ("a.srt", "b.srt", "c.srt")}
    succeed(f"{line} --force")
    assert transcripts() == {name: first[name] for name in ("a.srt", "b.srt", "c.srt")}


def transcripts() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("subs").iterdir() if path.stem in "abc"}


def test_resume_knows_how_transcripts_were_made(
    files: Path, succeed: Callable, shell: Callable
) -> None:
    line = "lorsmerge transcribe timed -a talks -o subs --language ca" + QUICK
    succeed(line)
    line += " --resume"
    for changed, told in [
        (line.replace("--beam 1", "--beam 2"), "subs/b.srt was made otherwise: with beam 1, and not 2."),
        (line.replace("ca", "de"), "with language ca, and not de"),
        (line.replace("transcribe timed", "transcribe tuned"), "of other weights"),
        (f"{line} --no-condition", "with condition True, and not False"),
    ]:  # fmt: skip
        refused = shell(changed)
        assert refused.code == WORK
        assert told in message(refused.err)
        assert "--resume --force replaces it" in message(refused.err)
    assert "3 recordings have transcripts already" in succeed(f"{line} --batch-size 1").out
    Path("subs/a.srt").write_text("edited\n")
    before = transcripts()
    ended = succeed(f"{line} --as srt --as vtt")  # the srt are there, and stay
    assert "subs/a.srt is not as it was written: it was edited" in message(ended.err)
    assert {name: transcripts()[name] for name in before} == before
    assert "a.vtt" in transcripts()
    assert "3 recordings have" in succeed(f"{line} --as srt --as vtt").out


def test_resume_takes_no_other_audio_or_program_s_transcripts(
    files: Path, succeed: Callable, shell: Callable
) -> None:
    line = "lorsmerge transcribe timed -a talks -o subs --resume" + QUICK
    Path("subs").mkdir()
    Path("subs/b.srt").write_text("by hand\n")
    refused = shell(line)
    assert "subs/b.srt was made otherwise: transcripts.journal does not say how" in message(
        refused.err
    )
    assert [path.name for path in Path("subs").iterdir()] == ["b.srt"]
    Path("subs/b.srt").unlink()
    succeed(line)
    shutil.copy("talks/a.wav", "talks/c.wav")
    assert "subs/c.srt was made otherwise: of other audio" in message(shell(line).err)
    succeed(f"{line} --force")
    assert Path("subs/c.srt").read_bytes() == Path("subs/a.srt").read_bytes()
    whole = Path("subs/transcripts.journal").read_bytes()
    for damage in (
        b"",
        b"\xff\n[]\n{}\n" + whole[:-9],
        b'{"transcript": 1}\n{"transcript": "a.srt", "x": 1}',
    ):
        Path("subs/transcripts.journal").write_bytes(damage)
        told = message(shell(line).err)
        assert "was made otherwise" in told or "is not as it was written" in told
        succeed(f"{line} --force")  # a line that was cut is not glued to the next
        assert "3 recordings have" in succeed(line).out
    Path("subs/transcripts.journal").unlink()
    Path("subs/transcripts.journal").mkdir()
    refused = shell(line)
    assert refused.code == WORK
    assert "subs/transcripts.journal is no regular file" in message(refused.err)


def test_resume_sees_other_audio_tokenizers_and_commands(
    files: Path, succeed: Callable, shell: Callable
) -> None:
    line = "lorsmerge transcribe timed -a talks -o subs --resume --language ca" + QUICK
    succeed(line)
    raw = bytearray(Path("talks/a.wav").read_bytes())
    raw[100:5000] = bytes(4900)  # of the same size, and the same in the middle
    Path("talks/a.wav").write_bytes(raw)
    assert "subs/a.srt was made otherwise: of other audio" in message(shell(line).err)
    succeed(f"{line} --force")
    text = Path("timed/tokenizer.json").read_text()
    Path("timed/tokenizer.json").write_text(text.replace("house", "mouse"))
    assert "was made otherwise: of other config" in message(shell(line).err)
    Path("timed/tokenizer.json").write_text(text)
    single = "lorsmerge transcribe tuned -a talks/b.wav -o subs/b.srt --force --language ca"
    succeed(single + QUICK)
    ended = succeed(line)
    assert "subs/b.srt is not as it was written" in message(ended.err)
    Path("subs/b.srt").unlink()
    Path("subs/b.srt").mkdir()
    assert shell(line).code == WORK
    assert "Traceback" not in shell(line).err


@pytest.mark.parametrize("before", ["nothing", "other model"])
def test_a_kill_before_a_transcript_is_placed(
    files: Path, succeed: Callable, shell: Callable, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Its line is there, and says nothing of what was there before."""
    settings: dict[str, Any] = {
        "beam": 1, "temperatures": (0.0,), "logprob": -99.0, "device": "cpu", "language": "ca",
        "resume": True,
    }  # fmt: skip
    if before == "other model":
        transcribe_recordings("tuned", "talks", "subs", **settings)
    old = transcripts() if before == "other model" else {}
    place = recordings.atomic_file

    @contextmanager
    def killed(path: Path, **more: Any) -> Iterator[Path]:
        with suppress(KeyboardInterrupt), place(path, **more) as partial:
            yield partial
            raise KeyboardInterrupt
        raise KeyboardInterrupt

    monkeypatch.setattr(recordings, "atomic_file", killed)
    with pytest.raises(Interrupted):
        transcribe_recordings("timed", "talks", "subs", **settings, force=bool(old))
    monkeypatch.setattr(recordings, "atomic_file", place)
    assert Path("subs/transcripts.journal").read_text().count("timed") == 0
    assert (transcripts() if old else {}) == old
    if old:
        assert transcribe_recordings("tuned", "talks", "subs", **settings).resumed == 3
        with pytest.raises(LorsmergeError, match="of other weights"):
            transcribe_recordings("timed", "talks", "subs", **settings)
    else:
        assert len(transcribe_recordings("timed", "talks", "subs", **settings).recordings) == 3


@pytest.mark.parametrize("target", ["timed/model.safetensors", "notes.md", "gone"])
def test_the_journal_is_no_link(files: Path, shell: Callable, target: str) -> None:
    Path("notes.md").write_text("mine")
    Path("subs").mkdir()
    Path("subs/transcripts.journal").symlink_to(files / target)
    before = Path(target).read_bytes() if Path(target).exists() else None
    ended = shell("lorsmerge transcribe timed -a talks -o subs" + QUICK)
    assert ended.code == WORK
    assert "subs/transcripts.journal is no regular file" in message(ended.err)
    assert (Path(target).read_bytes() if Path(target).exists() else None) == before
    assert [path.name for path in Path("subs").iterdir()] == ["transcripts.journal"]


def test_a_journal_that_cannot_be_written_is_told_before_the_work(
    files: Path, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("subs").mkdir()
    Path("subs/transcripts.journal").write_text("")
    opened = made._opened

    def refused(path: Path, flags: int, mode: str) -> Any:
        if flags & os.O_APPEND:
            raise PermissionError(1, "Operation not permitted")
        return opened(path, flags, mode)

    monkeypatch.setattr(made, "_opened", refused)
    monkeypatch.setattr(recordings, "hear", None)  # nothing is decoded
    ended = shell("lorsmerge transcribe timed -a talks -o subs" + QUICK)
    assert ended.code == WORK
    assert "subs/transcripts.journal cannot be written (Operation not permitted)" in message(
        ended.err
    )
    assert "Traceback" not in ended.err


def test_a_name_that_is_no_utf_8(files: Path, succeed: Callable) -> None:
    shutil.copy("talks/b.wav", b"talks/\xff\xfe.wav")
    line = "lorsmerge transcribe timed -a talks -o subs --resume" + QUICK
    succeed(line)
    assert os.path.exists(b"subs/\xff\xfe.srt")
    assert "4 recordings have transcripts already" in succeed(line).out


def test_standard_input(files: Path, succeed: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Path("talks/a.wav").read_bytes()
    settings: dict[str, Any] = {"beam": 1, "temperatures": (0.0,), "logprob": -99, "device": "cpu"}
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
    transcribe_recordings("timed", "-", "piped.srt", **settings)
    with pytest.raises(UnreadableFile, match="Standard input is empty"):
        transcribe_recordings("timed", "-", "empty.srt", **settings)
    succeed("lorsmerge transcribe timed -a talks/a.wav -o a.srt" + QUICK)
    assert Path("piped.srt").read_bytes() == Path("a.srt").read_bytes()


@pytest.mark.parametrize("rate", [8_000, 44_100, 192_000])
def test_other_rates(files: Path, succeed: Callable, rate: int) -> None:
    line = f"lorsmerge transcribe timed -a at{rate}.wav -o x.json --json" + QUICK
    (item,) = json.loads(succeed(line).out)["recordings"]
    assert item["seconds"] == pytest.approx(4.0, abs=0.002)


def test_channels_of_a_call(files: Path, succeed: Callable) -> None:
    succeed("lorsmerge transcribe timed -a call.wav -o call --channels split" + QUICK)
    assert sorted(path.name for path in Path("call").iterdir()) == [
        "call.1.srt", "call.2.srt", "transcripts.journal",
    ]  # fmt: skip
    samples, rate = soundfile.read("call.wav", dtype="float32")
    soundfile.write("right.wav", samples[:, 1], rate, subtype="FLOAT")
    succeed("lorsmerge transcribe timed -a right.wav -o right.srt" + QUICK)
    assert Path("right.srt").read_bytes() == Path("call/call.2.srt").read_bytes()


def test_a_truncated_file_says_where_it_ends(files: Path, succeed: Callable) -> None:
    ended = succeed("lorsmerge transcribe timed -a cut.wav -o cut.srt" + QUICK)
    assert "cut.wav is truncated or damaged: its audio ends at 00:00:03.6" in message(ended.err)


def flac(path: Path, seconds: float) -> bytes:
    wave = np.random.default_rng(3).standard_normal(round(seconds * 16_000)) / 10
    soundfile.write(path, wave, 16_000)
    return path.read_bytes()


def test_a_damaged_flac_is_heard_to_the_damage_and_said(files: Path, succeed: Callable) -> None:
    whole = bytearray(flac(Path("d.flac"), 27))
    whole[len(whole) // 2] ^= 255  # the header still promises 27 s, and its last sample decodes
    Path("d.flac").write_bytes(whole)
    ended = succeed("lorsmerge transcribe timed -a d.flac -o d.srt" + QUICK)
    assert "d.flac is truncated or damaged: its audio ends at 00:00:13.2" in message(ended.err)
    Path("t.flac").write_bytes(flac(Path("t.flac"), 27)[: int(0.6 * len(whole))])
    ended = succeed("lorsmerge transcribe timed -a t.flac -o t.srt" + QUICK)
    assert "t.flac is truncated or damaged: its audio ends at 00:00:16.1" in message(ended.err)


def test_a_recording_without_a_sample_does_not_end_the_others(files: Path, shell: Callable) -> None:
    Path("talks/aa.flac").write_bytes(flac(Path("x.flac"), 7)[:3_000])  # cut in its first frame
    ended = shell("lorsmerge transcribe timed -a talks -o subs --batch-size 1" + QUICK)
    assert ended.code == WORK
    assert "aa.flac has no samples that can be decoded" in message(ended.err)
    assert sorted(path.name for path in Path("subs").glob("*.srt")) == ["a.srt", "b.srt", "c.srt"]


def test_a_single_file_that_exists_is_said_to_be_unchecked(files: Path, succeed: Callable) -> None:
    succeed("lorsmerge transcribe timed -a talks/a.wav -o x.srt" + QUICK)
    ended = succeed("lorsmerge transcribe timed -a talks/b.wav -o x.srt --resume" + QUICK)
    assert "x.srt exists and is left as it is: of a single file nothing records" in message(
        ended.err
    )


def test_standard_output_is_no_folder(files: Path, shell: Callable) -> None:
    refused = shell("lorsmerge transcribe timed -a talks/a.wav -o -" + QUICK)
    assert refused.code == USAGE
    assert "without -o the text is printed" in message(refused.err)


def test_silence_is_an_empty_transcript(files: Path, succeed: Callable) -> None:
    line = (
        "lorsmerge transcribe timed -a silence.wav -o s.srt --device cpu --beam 1 --temperatures 0"
    )
    ended = succeed(f"{line} --no-speech=-1 --logprob 0")
    assert "no speech was found" in message(ended.err)
    assert "windows that have sound" not in ended.err
    assert Path("s.srt").read_text() == ""


def test_windows_that_have_sound_and_got_no_text_are_told(files: Path, succeed: Callable) -> None:
    samples, _ = soundfile.read("talks/a.wav", dtype="float32")
    quiet = np.full(6 * 16_000, 1e-5, np.float32)
    soundfile.write("gap.wav", np.concatenate([samples[:30_000], quiet]), 16_000, subtype="FLOAT")
    line = "lorsmerge transcribe timed -a gap.wav -o g.json --force --json --no-timestamps" + QUICK
    ended = succeed(f"{line} --no-speech=-1 --logprob 0")
    (item,) = json.loads(ended.out)["recordings"]
    assert (item["windows"], item["sounding"], item["unheard"]) == (4, 1, 1)
    assert (
        "gap.wav: no speech was found, and its transcript is empty; 1 of 4 windows have sound. Try "
        "--no-speech inf (at -1, 4 windows are taken for silent)." in message(ended.err)
    )
    ended = succeed(f"{line} --no-speech inf")
    assert "Try --no-speech" not in message(ended.err)
    ended = succeed(f"{line.replace('gap.wav', 'talks/a.wav')} --no-speech=-1 --logprob 0")
    (item,) = json.loads(ended.out)["recordings"]
    assert item["sounding"] == item["unheard"] == item["windows"]


def test_the_texts_of_several_models_say_which_lack_windows(
    files: Path, succeed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "lorsmerge transcribe timed untimed -a talks/b.wav --beam 1 --device cpu --json"
    whole = json.loads(succeed(line).out)["transcripts"]
    assert [item["unheard"] for item in whole] == [0, 0]
    assert all(item["sounding"] > 1 for item in whole)
    silent = partial(LongSettings, no_speech=-1.0, logprob=0.0)  # every window is taken for silent
    monkeypatch.setattr(show, "LongSettings", silent)
    ended = succeed(line)
    for item in json.loads(ended.out)["transcripts"]:
        assert item["unheard"] == item["sounding"] > 1
        text = f"{item['model']}'s text of talks/b.wav lacks {item['unheard']} of {item['sounding']} windows"
        assert text in message(ended.err)


def test_video_is_decoded_by_ffmpeg(files: Path, succeed: Callable, ffmpeg: Path) -> None:
    line = "lorsmerge transcribe timed --audio=-film.mp4 -o film.json --json" + QUICK
    (item,) = json.loads(succeed(line).out)["recordings"]
    assert item["seconds"] == 1.0
    said = json.loads(ffmpeg.read_text())
    assert said[said.index("-i") + 1] == "file:-film.mp4"


def test_a_video_without_sound(files: Path, shell: Callable, ffmpeg: Path) -> None:
    shutil.copy("-film.mp4", "silent.mp4")
    ended = shell("lorsmerge transcribe timed -a silent.mp4 -o film.srt" + QUICK)
    assert ended.code == WORK
    assert "ffmpeg finds no audio in silent.mp4 (no such stream)" in message(ended.err)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("untimed -a talks/a.wav -o a.srt", USAGE, "untimed has no timestamps in its vocabulary"),
        ("timed -a talks/a.wav -o a.srt --words", USAGE, "timed has no alignment_heads"),
        ("timed -a talks/a.wav -o a.doc", USAGE, "a.doc ends like no transcript"),
        ("timed -a talks/a.wav -o a.srt --as vtt", USAGE, "a.srt is a .srt, and vtt is asked for"),
        ("timed -a talks/a.wav -o out --as str", USAGE, "Did you mean 'srt'?"),
        ("timed -a talks -o a.srt", USAGE, "a.srt is one file, for 3 recordings"),
        ("timed -a talks -a other/a.wav -o out", USAGE, "would both be written into out/a.srt"),
        ("timed -a nothing -o out", WORK, "nothing holds no audio file"),
        ("timed -a nowhere.wav -o out", WORK, "no audio file nowhere.wav"),
        ("timed --audio=-film.mp4 -o out", WORK, "ffmpeg would be asked, and is not on PATH"),
        ("timed -a fifo.wav -o out", WORK, "fifo.wav is a FIFO"),
        ("timed untimed -a talks -o out", USAGE, "transcripts of one MODEL"),
        ("timed -o a.srt", USAGE, "Give --audio as well"),
        ("timed -a talks -o out --temperatures cold", USAGE, "--temperatures cold is no list"),
        ("timed -a talks -o out --language fr", USAGE, "timed has no token <|fr|>"),
        ("timed -a talks -o out --min-confidence -1", USAGE, "--min-confidence needs --data"),
        ("timed -a talks -o talks/a.wav", USAGE, "ends like no transcript"),
        ("timed -a talks/a.wav --as srt", USAGE, "--as needs -o FILE"),
        ("timed -a call.wav -o call.srt --channels split", USAGE, "one file, for 2 recordings or"),
        ("timed -a talks/a.wav -o a.srt --channels both", USAGE, "Give mix or split"),
        ("timed -a talks/a.wav -o a.srt --engine ct3", USAGE, "Did you mean 'ct2'?"),
        ("timed -a talks/a.wav -o a.srt --engine ct2 --words", USAGE, "ct2 has no --words"),
        ("timed -a talks/a.wav -o a.srt --dtype int8", USAGE, "int8"),
        ("timed -a talks/a.wav --engine ct2", USAGE, "--engine needs -o FILE"),
        (
            "--data d.jsonl --teacher timed -o d2.jsonl --engine ct2",
            USAGE,
            "has no effect on --data",
        ),
    ],
)
def test_bad_input_is_one_clear_error(
    files: Path, shell: Callable, monkeypatch: pytest.MonkeyPatch, line: str, code: int, words: str
) -> None:
    monkeypatch.setenv("PATH", str(files))
    monkeypatch.setattr(recordings, "hear", None)  # nothing is decoded
    Path("nothing").mkdir()
    Path("other").mkdir()
    shutil.copy("talks/a.wav", "other/a.wav")
    os.mkfifo("fifo.wav")
    before = sorted(path.name for path in files.rglob("*"))
    ended = shell(f"lorsmerge transcribe {line} --device cpu")
    assert ended.code == code, ended.err
    assert words in message(ended.err)
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert sorted(path.name for path in files.rglob("*")) == before


def test_ctranslate2_writes_the_same_subtitles(files: Path, succeed: Callable) -> None:
    pytest.importorskip("ctranslate2")
    line = "lorsmerge transcribe timed -a talks/a.wav --language ca --temperatures 0 --beam 1 --device cpu"
    for engine in ("torch", "ct2"):
        succeed(f"{line} --engine {engine} -o {engine}.srt")
    assert Path("ct2.srt").read_text() == Path("torch.srt").read_text() != ""


def test_windows_follow_each_other_without_timestamps(files: Path, succeed: Callable) -> None:
    succeed(
        "lorsmerge transcribe untimed -a talks/a.wav -o a.srt --language ca --no-timestamps" + QUICK
    )
    cues = pysrt.open("a.srt", encoding="utf-8")
    assert [cue.start.ordinal for cue in cues] == [0, 2000, 4000, 6000]
    assert [cue.end.ordinal for cue in cues] == [2000, 4000, 6000, 7297]


def test_an_interruption_keeps_what_is_done(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = recordings.hear

    def interrupted(speech: Any, items: Any, settings: Any, *, done: Any, **more: Any) -> Any:
        def stop(index: int, heard: Any) -> None:
            done(index, heard)
            raise KeyboardInterrupt

        return real(speech, items, settings, done=stop, **more)

    monkeypatch.setattr(recordings, "hear", interrupted)
    settings: dict[str, Any] = {
        "beam": 1, "temperatures": (0.0,), "batch_size": 1, "device": "cpu", "language": "ca",
    }  # fmt: skip
    with pytest.raises(Interrupted, match="after 1 of 3 recordings") as caught:
        transcribe_recordings("timed", "talks", "subs", **settings)
    assert caught.value.exit_code == INTERRUPTED
    assert "--resume" in str(caught.value)
    assert sorted(path.name for path in Path("subs").iterdir()) == ["a.srt", "transcripts.journal"]
    monkeypatch.setattr(recordings, "hear", real)
    report = transcribe_recordings("timed", "talks", "subs", resume=True, **settings)
    assert (len(report.recordings), report.resumed) == (2, 1)


def test_progress_counts_seconds_of_audio(files: Path) -> None:
    calls: list[tuple[int, int]] = []
    transcribe_recordings(
        "timed", "talks", "subs", beam=1, temperatures=(0.0,), device="cpu",
        progress=lambda step, total: calls.append((step, total)),
    )  # fmt: skip
    assert sum(step for step, _ in calls) in (14, 15)
    assert {total for _, total in calls} <= {15, 16}
