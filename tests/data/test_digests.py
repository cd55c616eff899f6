"""What is found to be the same in two data sets, beside plain comparisons of what is in them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import xxhash
from speech_models import make_clip

from lorsmerge_cli.data import audio_source
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.digests import digests_of
from lorsmerge_cli.data.leakage import Shared, repeated, shared_with, shared_with_training
from lorsmerge_cli.data.utterance import Utterance


def row(audio: Path, text: str = "bon dia", **about: object) -> Utterance:
    about = {"language": "ca", "task": "asr", "whole": True, "duration": 1.0} | about
    return Utterance("u", AudioFile(audio), text, **about)


def piece(audio: Path, start: float, end: float, **about: object) -> Utterance:
    return row(audio, start=start, duration=end - start, whole=False, **about)


def counts(
    rows: list[Utterance], others: list[Utterance], limit: int = 1 << 30
) -> dict[str, tuple[int, int]]:
    """Kind -> how many are shared, and of how many."""
    theirs = {kind: sketch.bounded(limit) for kind, sketch in digests_of(others).sketches.items()}
    found = shared_with(digests_of(rows), theirs)
    return {shared.kind: (shared.count, shared.of) for shared in found}


def audio(rows: list[Utterance], others: list[Utterance]) -> int:
    return counts(rows, others).get("audio", (0, 0))[0]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        make_clip(folder / f"{number}.wav", number, 0.5)
    return folder


# --- audio ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["other path", "renamed copy", "link", "hard link", "other folder"])
def test_the_same_bytes_are_the_same_audio(clips: Path, tmp_path: Path, how: str) -> None:
    source = clips / "0.wav"
    target = tmp_path / "sub" / ("0.wav" if how == "other folder" else "other name.bin")
    target.parent.mkdir()
    if how == "other path":
        target = clips / ".." / clips.name / "0.wav"
    elif how in ("link", "hard link"):
        (target.hardlink_to if how == "hard link" else target.symlink_to)(source)
    else:
        shutil.copy(source, target)
    assert audio([row(target), row(clips / "1.wav")], [row(source), row(clips / "2.wav")]) == 1


def test_other_bytes_are_other_audio(clips: Path, tmp_path: Path) -> None:
    samples, rate = soundfile.read(clips / "0.wav", dtype="float32")
    samples[len(samples) // 2] += 1e-4
    soundfile.write(tmp_path / "0.wav", samples, rate, subtype="FLOAT")
    assert audio([row(tmp_path / "0.wav")], [row(clips / "0.wav")]) == 0


@pytest.mark.parametrize(
    "size", [audio_source.WHOLE, audio_source.WHOLE + 1, 5 * audio_source.WHOLE + 17]
)
def test_a_large_file_is_told_by_its_size_and_pieces(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    paths = [tmp_path / name for name in ("a", "b", "shorter", "first", "middle", "last")]
    changes = [data, data, data[:-1], *(bytearray(data) for _ in range(3))]
    for changed, place in zip(
        changes[3:], (0, 5 * (size - audio_source.WINDOW) // 15, -1), strict=True
    ):
        changed[place] ^= 1
    for path, content in zip(paths, changes, strict=True):
        path.write_bytes(content)
    first, second, *others = (AudioFile(path).digest() for path in paths)
    assert first == second
    assert first not in others
    if size <= audio_source.WHOLE:
        assert first == xxhash.xxh3_64(data).intdigest()


@pytest.mark.parametrize("gone", ["missing.wav", "folder", "fifo"])
def test_what_cannot_be_read_is_in_no_set(clips: Path, tmp_path: Path, gone: str) -> None:
    path = tmp_path / gone
    if gone == "folder":
        path.mkdir()
    elif gone == "fifo":
        os.mkfifo(path)
    rows = [row(path), row(clips / "0.wav")]
    assert counts(rows, rows)["audio"] == (1, 1)
    assert counts([row(path)], [row(path)]).keys() == {"sentences"}


PIECES = [
    (0.0, 2.5), (2.5, 5.0), (2.0, 5.0), (1.5, 3.5), (4.0, 9.0), (9.0, 10.0), (9.5, 10.0),
    (7.25, 7.75), (0.0, 10.0), (4.99, 9.01),
]  # fmt: skip


def test_pieces_of_a_file_are_the_same_audio_where_they_overlap(clips: Path) -> None:
    """By a second that begins in both: those of less than a second may overlap without one."""
    path = clips / "0.wav"
    for one, other in product(PIECES, repeat=2):
        low, high = max(one[0], other[0]), min(one[1], other[1])
        shared = any(low <= second < high for second in range(10))
        expected = one == other or shared
        assert audio([piece(path, *one)], [piece(path, *other)]) == expected, (one, other)
        assert low < high or not expected
        if high - low >= 1:
            assert expected


def test_random_pieces_are_shared_as_their_seconds_are(clips: Path) -> None:
    chosen = random.Random(0)
    cut = [(a, a + chosen.uniform(1, 6)) for a in (chosen.uniform(0, 300) for _ in range(60))]
    other = [(a, a + chosen.uniform(1, 6)) for a in (chosen.uniform(0, 300) for _ in range(60))]

    def seconds(begin: float, end: float) -> set[int]:
        return {n for n in range(400) if round(100 * begin) <= 100 * n < round(100 * end)}

    path = clips / "1.wav"
    there = set().union(*(seconds(*times) for times in other))
    expected = sum(bool(seconds(*times) & there) for times in cut)
    found = audio([piece(path, *times) for times in cut], [piece(path, *times) for times in other])
    assert found == expected
    assert 0 < found < 60


def test_a_piece_is_in_its_whole_file_and_the_file_in_it(clips: Path) -> None:
    path, other = clips / "0.wav", clips / "1.wav"
    for part in (piece(path, 3.1, 4.2), piece(path, 3.1, 3.6)):
        assert audio([part], [row(path)]) == audio([row(path)], [part]) == 1
        assert audio([part], [row(other)]) == audio([row(other)], [part]) == 0
    assert audio([row(path, duration=None, whole=False)], [row(path)]) == 1


def test_a_manifest_tells_whole_files_from_pieces(tmp_path: Path) -> None:
    make_clip(tmp_path / "x.wav", 0, 3.0)
    (tmp_path / "m.jsonl").write_text(
        '{"audio_filepath": "x.wav", "text": "a", "source_lang": "ca"}\n'
        '{"audio_filepath": "x.wav", "text": "b", "source_lang": "ca", "duration": 3.02}\n'
        '{"audio_filepath": "x.wav", "text": "c", "source_lang": "ca", "duration": 2}\n'
        '{"audio_filepath": "x.wav", "text": "d", "source_lang": "ca", "offset": 1}\n'
    )
    rows = load_data([tmp_path / "m.jsonl"]).utterances
    assert [row.whole for row in rows] == [True, True, False, False]


# --- sentences and speakers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("L'Avi, diu: «bon dia»!", True), ("l\u2019avi diu bon dia", True), ("lavi diu  bondia", True),
        ("L'AVI DIU BON DIA", True), ("l'avi diu bon di\u0061\u0301", False), ("l'avi diu", False),
        ("l'avi diu bon dia 2", False),
    ],
)  # fmt: skip
def test_sentences_are_the_same_in_letters_marks_and_digits(
    clips: Path, text: str, same: bool
) -> None:
    rows = [row(clips / "0.wav", text)], [row(clips / "1.wav", "l'avi diu bon dia")]
    assert counts(*rows) == ({"sentences": (1, 1)} if same else {})


@pytest.mark.parametrize(
    ("one", "other"),
    [("किताब", "कताब"), ("น้ำ", "นำ"), ("ы", "и"), ("élève", "eleve"), ("你", "好")],
)
def test_words_that_differ_stay_apart(clips: Path, one: str, other: str) -> None:
    assert counts([row(clips / "0.wav", one)], [row(clips / "1.wav", other)]) == {}
    assert counts([row(clips / "0.wav", one)], [row(clips / "1.wav", one)]) != {}


@pytest.mark.parametrize("change", [{"language": "es"}, {"task": "st"}])
def test_sentences_and_speakers_have_a_language(clips: Path, change: dict[str, str]) -> None:
    ours = [row(clips / "0.wav", speaker="7")]
    theirs = [row(clips / "1.wav", speaker="7", **change)]
    assert counts(ours, theirs) == ({} if "language" in change else {"speakers": (1, 1)})


def test_a_text_without_words_and_a_row_without_speaker_are_in_no_set(clips: Path) -> None:
    rows = [row(clips / "0.wav", "..."), row(clips / "1.wav", ""), row(clips / "2.wav", "hola")]
    rows[2] = replace(rows[2], speaker="a")
    assert counts(rows, rows) == {"audio": (3, 3), "sentences": (1, 1), "speakers": (1, 1)}


def test_rows_are_counted_and_of_speakers_each_once(clips: Path) -> None:
    path = clips / "0.wav"
    rows = [row(path, f"frase {n % 5}", speaker=f"s{n % 4}") for n in range(20)]
    others = [row(clips / "1.wav", "frase 3", speaker="s1"), row(clips / "1.wav", speaker="x")]
    assert counts(rows, others) == {"sentences": (4, 20), "speakers": (1, 4)}


def test_hashes_are_those_of_the_page(clips: Path, tmp_path: Path) -> None:
    """docs/delta-format.md, followed step by step."""
    large = tmp_path / "large"
    large.write_bytes(np.random.default_rng(1).integers(0, 256, 300_000, np.uint8).tobytes())
    rows = [
        row(clips / "0.wav", "Straße, №\u00a07!", speaker="Anna 1"),
        piece(large, 2.5, 5.0, text="\u0e19\u0e49\u0e33", language="th", task="st"),
        piece(large, 7.25, 7.75, text="?"),
    ]
    data = large.read_bytes()
    parts = [data[i * (300_000 - 16_384) // 15 :][:16_384] for i in range(16)]
    of_large = (
        xxhash.xxh3_64_intdigest((300_000).to_bytes(8, "little") + b"".join(parts)) >> 20 << 20
    )
    of_small = xxhash.xxh3_64_intdigest((clips / "0.wav").read_bytes()) >> 20 << 20
    in_between = 2**19 + xxhash.xxh3_64_intdigest(b"725-775") % 2**19
    wanted = {
        "audio": {of_small, of_large + 4, of_large + 5, of_large + in_between},
        "sentences": {
            xxhash.xxh3_64_intdigest(b"ca\0asr\0strasseno7"),
            xxhash.xxh3_64_intdigest("th\0st\0\u0e19\u0e49\u0e4d\u0e32".encode()),
        },
        "speakers": {xxhash.xxh3_64_intdigest(b"ca\0Anna 1")},
    }
    found = digests_of(rows).sketches
    assert {kind: set(sketch.hashes.tolist()) for kind, sketch in found.items()} == wanted


# --- many, and samples of them --------------------------------------------------------------------


def test_of_a_large_set_a_sample_gives_the_share(clips: Path) -> None:
    train = [row(clips / "0.wav", f"frase {n}", speaker=str(n)) for n in range(6000)]
    test = [row(clips / "1.wav", f"frase {n}", speaker=str(n)) for n in range(5000, 10_000)]
    found = counts(test, train, limit=1500)
    for kind in ("sentences", "speakers"):
        shared, of = found[kind]
        assert 1000 < of < 1500  # a quarter of them
        assert shared / of == pytest.approx(0.2, abs=0.05)
    assert counts(test, train)["sentences"] == (1000, 5000)


def test_a_copy_of_a_whole_set_is_found_by_any_sample(clips: Path) -> None:
    rows = [row(clips / "0.wav", f"frase {n}", speaker=str(n)) for n in range(300)]
    for limit in (1, 10, 299):
        shared, of = counts(rows, rows, limit=limit)["sentences"]
        assert shared == of == limit


def test_a_sample_of_files_has_all_pieces_of_each_but_the_last(tmp_path: Path) -> None:
    for number in range(40):
        make_clip(tmp_path / f"{number}.wav", number, 0.1)
    rows = [
        piece(tmp_path / f"{number}.wav", start, start + 3.0)
        for number in range(40)
        for start in range(0, 30, 3)
    ]
    whole = [row(tmp_path / f"{number}.wav") for number in range(40)]
    for limit in (30, 45, 300):
        shared, of = counts(rows, rows, limit=limit).get("audio", (0, 0))
        assert shared == of == 10 * ((limit - 1) // 30)
        assert counts(whole, rows, limit=limit).get("audio", (0, 0))[0] == (limit - 1) // 30


def trained(clips: Path, **texts: list[str]) -> list[tuple[str, dict[str, object]]]:
    return [
        (name, digests_of([row(clips / "3.wav", text) for text in said]).sketches)
        for name, said in texts.items()
    ]


def test_several_training_sets_are_counted_together_and_named(clips: Path) -> None:
    data = digests_of([row(clips / f"{n}.wav", text) for n, text in enumerate("abc")])
    known = trained(clips, ca=["a", "b"], es=["b"], de=["x"])
    assert shared_with_training(data, known) == [Shared("sentences", 2, 3, True, ("ca", "es"))]
    chosen = np.array([False, True, True])
    assert shared_with_training(data, known, chosen) == [
        Shared("sentences", 1, 2, True, ("ca", "es"))
    ]
    assert shared_with_training(data, trained(clips, de=["x"])) == []
    assert shared_with_training(data, [("none", {})]) == []


# --- in words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shared", "about", "words"),
    [
        (Shared("sentences", 12, 200, True, ("ca_asr.delta",)), {"role": "test"},
         "12 of the 200 test sentences (6%) are in the training data of ca_asr.delta: scores may be "
         "too good."),
        (Shared("audio", 3, 3, True, tuple("abcde")), {"name": "x.jsonl"},
         "3 of the 3 utterances of x.jsonl are in the training data of a, b, c and 2 more: a score "
         "on them says nothing about new data."),
        (Shared("speakers", 1, 999, True), {"role": "dev", "where": "the training data too"},
         "1 of the 999 dev speakers (0.1%) is in the training data too: scores may be too good."),
        (Shared("sentences", 999, 1000, True, ("a",)), {"role": "dev"},
         "999 of the 1000 dev sentences (99.9%) are in the training data of a: scores may be too "
         "good."),
        (Shared("sentences", 12, 198, False, ("a",)), {"role": "test"},
         "About 6% of the test sentences are in the training data of a (12 of the 198 that its "
         "digests tell of): scores may be too good."),
    ],
)  # fmt: skip
def test_a_warning_has_counts_and_shares(shared: Shared, about: dict, words: str) -> None:
    assert shared.warning(about.pop("where", ""), **about) == words


# --- repeated rows --------------------------------------------------------------------------------


def test_repeated_audio_is_counted(clips: Path, tmp_path: Path) -> None:
    copy = shutil.copy(clips / "0.wav", tmp_path / "copy.wav")
    rows = [
        row(clips / "0.wav", "a"), row(copy, "a  "), row(copy, "b"), row(clips / "1.wav", "a"),
        row(clips / "0.wav", "a", task="st"),  # a translation of it
        piece(clips / "0.wav", 0, 2), piece(copy, 0, 2, text="c"), piece(copy, 2, 4),
        row(tmp_path / "gone", "a"), row(tmp_path / "gone", "a"),
    ]  # fmt: skip
    assert repeated(digests_of(rows), role="test") == [
        "3 of the 10 test utterances repeat the audio of another one, 2 of them with another text: "
        "it counts more than once."
    ]
    assert repeated(digests_of(rows[2:5])) == []
    assert repeated(digests_of(rows[:2]), name="x") == [
        "1 of the 2 utterances of x repeats the audio of another one: it counts more than once."
    ]


def test_each_file_is_read_once(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(AudioFile, "digest", lambda source: read.append(source.path) or 5)
    rows = [row(clips / "0.wav"), row(clips / "0.wav", task="st"), row(clips / "1.wav")]
    digests_of(rows)
    assert sorted(read) == [clips / "0.wav", clips / "1.wav"]


def test_looking_at_data_loads_no_torch() -> None:
    code = "import sys, lorsmerge_cli.data.dataset; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
