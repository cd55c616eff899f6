"""Data sets on the Hub, read by their names through the real `datasets` and `huggingface_hub`."""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hub_data import (
    AUDIO,
    CELL,
    FLEURS,
    add_set,
    audio,
    card,
    fleurs_files,
    fleurs_rows,
    labels,
    sound,
    table,
)
from hub_server import READER, WRITER, Hub, forget_lookups
from huggingface_hub import constants

from lorsmerge_cli.data.audio import load_audio
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import drop_warnings, load_data
from lorsmerge_cli.data.digests import digests_of
from lorsmerge_cli.data.leakage import shared_with
from lorsmerge_cli.data.readers import manifest_splits, read_manifest
from lorsmerge_cli.data.readers.hub import ArrowAudio, parse_reference
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import HubFault, LorsmergeError, UsageFault
from lorsmerge_cli.hub import data_sets
from lorsmerge_cli.inputs import FileIdentity

SPOKEN = {"audio": AUDIO, "text": "string"}


def texts(rows: Sequence[Utterance]) -> list[str]:
    return [row.text for row in rows]


def read(reference: str, **options: Any) -> list[Utterance]:
    """The utterances of a data set none of whose rows is dropped."""
    rows, drops = read_manifest(Path(reference), **options)
    assert not drops
    return rows


def fetched(hub: Hub) -> list[str]:
    """The Parquet files that were downloaded, by their places in the repository."""
    calls = [call.path for call in hub.seen("GET", "/resolve/") if call.path.endswith(".parquet")]
    return [re.sub(r".*/resolve/[^/]+/", "", path) for path in calls]


def add_table(
    hub: Hub, rows: Sequence[dict[str, Any]], features: dict[str, Any] | None = None,
    name: str = "org/set", split: str = "test", **about: Any,
) -> str:  # fmt: skip
    """A data set of one split and no card."""
    files = {f"data/{split}-00000-of-00001.parquet": table(rows, features or SPOKEN)}
    return add_set(hub, name, files, **about)


def failure(reference: str, **options: Any) -> str:
    """What is said of a data set that cannot be read."""
    with pytest.raises(LorsmergeError) as caught:
        load_data([Path(reference)], **options)
    return str(caught.value)


# --- layouts --------------------------------------------------------------------------------------


def test_fleurs_is_read_with_capitals_and_only_its_split_is_fetched(set_hub: Hub) -> None:
    commit = add_set(set_hub, "google/fleurs", fleurs_files())
    rows = read("hub:google/fleurs:ca_es:test")
    assert texts(rows[:3]) == ["La nena veu ocells.", "L'avi compra pa, llet i mel.", "Fa fred."]
    assert {(row.language, row.task) for row in rows} == {("ca", "asr")}
    assert [row.id for row in rows] == ["1", "2", "3", "1#2", "2#2", "3#2"]
    assert fetched(set_hub) == ["ca_es/test-00000-of-00001.parquet"]
    report = load_data([Path("hub:google/fleurs:ca_es:test")])
    assert report.hub == (
        f"hub:google/fleurs@{commit}:ca_es:test:audio=audio,text=raw_transcription",
    )
    (note,) = drop_warnings(report)
    assert "those of its column raw_transcription; text=transcription behind the split" in note
    plain = load_data([Path("hub:google/fleurs:ca_es:test:text=transcription")])
    assert texts(plain.utterances)[1] == "l'avi compra pa llet i mel"
    assert drop_warnings(plain) == []
    again = load_data([Path(report.hub[0])])  # what was recorded is read again
    assert again.utterances == report.utterances
    assert again.hub == report.hub
    forget_lookups()
    set_hub.calls.clear()
    assert read("hub:google/fleurs:ca_es:test") == rows
    assert [call.path for call in set_hub.calls] == ["/api/datasets/google/fleurs?blobs=true"]


def test_fleurs_is_translated_by_the_english_text_of_each_sentence(set_hub: Hub) -> None:
    add_set(set_hub, "google/fleurs", fleurs_files())
    rows, drops = read_manifest(Path("hub:google/fleurs:ca_es:test"), task="st")
    assert {(row.language, row.task, row.text, row.source_text) for row in rows} == {
        ("ca", "st", "The girl sees birds.", "La nena veu ocells."),
        ("ca", "st", "Grandfather buys bread, milk and honey.", "L'avi compra pa, llet i mel."),
    }
    assert {drop.reason for drop in drops} == {"no English text of the sentence"}
    assert (len(rows), len(drops)) == (4, 2)
    plain = read("hub:google/fleurs:cmn_hans_cn:test:text=transcription,id=path", task="st")
    assert plain[0].text == "the girl sees birds"
    assert plain[0].id == "110.wav"
    assert "English is not translated" in failure("hub:google/fleurs:en_us:test", task="st")


def test_fleurs_takes_no_english_text_that_may_be_another_sentences(set_hub: Hub) -> None:
    rows = {config: fleurs_rows(config, 2) for config in ("ca_es", "en_us")}
    for row in rows["ca_es"][2::3]:
        row["id"] = None  # as that of an English row, which is not the same sentence
    english = rows["en_us"]
    english[0]["raw_transcription"] = " "  # the other take of sentence 1 has the text
    for number, row in enumerate(english):
        if row["id"] == 2:
            row["raw_transcription"] = f"Another sentence, {number}."
    english.append({**english[0], "id": None, "raw_transcription": "Of no sentence."})
    files = fleurs_files()
    for config, own in rows.items():
        files[f"{config}/test-00000-of-00001.parquet"] = table(own, FLEURS)
    add_set(set_hub, "google/fleurs", files)
    found, drops = read_manifest(Path("hub:google/fleurs:ca_es:test"), task="st")
    assert [row.text for row in found] == ["The girl sees birds."] * 2
    assert [drop.reason for drop in drops] == ["no English text of the sentence"] * 4


def test_a_language_that_whisper_calls_otherwise_is_that_of_the_configuration(set_hub: Hub) -> None:
    add_set(set_hub, "google/fleurs", fleurs_files())
    rows = read("hub:google/fleurs:cmn_hans_cn:test")  # its column says "Mandarin Chinese"
    assert {row.language for row in rows} == {"zh"}
    assert "is what was asked for" in failure("hub:google/fleurs:ca_es:test", language="de")


def test_a_set_of_the_leaderboard(set_hub: Hub) -> None:
    formats = ("WAV", "FLAC", "MP3", "OPUS")
    rows = [
        {"audio": audio(n, format), "text": f"text {n}", "duration": 99.0, "dataset": "x"}
        for n, format in enumerate(formats)
    ]
    features = SPOKEN | {"duration": "float64", "dataset": "string"}
    files: dict[str, str | bytes] = {"README.md": card({"ls_de": ("test",)})}
    files["ls_de/test-00000-of-00001.parquet"] = table(rows, features)
    add_set(set_hub, "hf-audio/sets", files)
    report = load_data([Path("hub:hf-audio/sets:ls_de:test")], language="de")
    assert texts(report.utterances) == [f"text {n}" for n in range(4)]
    assert [row.duration for row in report.utterances] == pytest.approx([0.4] * 4, abs=0.1)
    assert [row.id for row in report.utterances] == [f"clip{n}" for n in range(4)]
    assert report.notes == ()
    assert "does not say which language is spoken" in failure("hub:hf-audio/sets:ls_de:test")


def test_speakers_locales_and_named_labels_as_in_common_voice(set_hub: Hub) -> None:
    features = {
        "client_id": "string", "clip": AUDIO, "sentence": "string", "locale": labels("ca", "de"),
    }  # fmt: skip
    rows = [
        {"client_id": "s", "clip": audio(0), "sentence": "l'avi", "locale": 0},
        {"client_id": None, "clip": audio(1, path=None), "sentence": "die Oma", "locale": 1},
    ]
    add_table(set_hub, rows, features)
    first, second = read("hub:org/set::test")
    assert (first.language, first.text, first.speaker, first.id) == ("ca", "l'avi", "s", "clip0")
    assert (second.language, second.speaker, second.id) == ("de", None, "row 1")
    (one,), skipped = read_manifest(Path("hub:org/set::test"), language="de")
    assert (one.text, skipped[0].reason) == ("die Oma", "of another language")


def test_translations_of_covost(set_hub: Hub) -> None:
    features = SPOKEN | {"sentence": "string", "translation": "string"}
    del features["text"]
    row = {"audio": audio(0), "sentence": "l'avi", "translation": "the grandfather"}
    add_table(set_hub, [row], features)
    assert read("hub:org/set", split="test", language="ca", task="asr")[0].text == "l'avi"
    found = read("hub:org/set", split="test", language="ca", task="st")[0]
    assert (found.text, found.source_text) == ("the grandfather", "l'avi")
    assert "Give --task asr or --task st." in failure("hub:org/set::test", language="ca")


def test_splits_have_our_names_and_their_own(set_hub: Hub) -> None:
    add_set(set_hub, "google/fleurs", fleurs_files())
    assert manifest_splits(Path("hub:google/fleurs:ca_es")) == ("train", "dev", "test")
    assert manifest_splits(Path("hub:google/fleurs:ca_es:test")) == ()
    add_table(set_hub, [{"audio": audio(0), "text": "the only split"}])
    report = load_data([Path("hub:org/set")], language="ca")
    assert texts(report.utterances) == ["the only split"]
    assert ":test:" in report.hub[0]
    named = [read(f"hub:google/fleurs:ca_es:{name}") for name in ("dev", "validation")]
    assert named[0] == named[1] == read("hub:google/fleurs:ca_es", split="dev")
    assert len(read("hub:google/fleurs:ca_es", split="train")) == 6


def test_rows_of_several_files_keep_their_order(set_hub: Hub) -> None:
    rows = [{"audio": audio(n), "text": f"text {n}"} for n in range(7)]
    files = {
        f"data/train-0000{part}-of-00003.parquet": table(rows[3 * part : 3 * part + 3], SPOKEN)
        for part in range(3)
    }
    add_set(set_hub, "org/set", files)
    found = read("hub:org/set::train", language="ca")
    assert texts(found) == [row["text"] for row in rows]
    assert [row.audio.open().read() for row in found] == [sound(n) for n in range(7)]


def test_a_branch_and_a_commit(set_hub: Hub) -> None:
    old = add_table(set_hub, [{"audio": audio(0), "text": "old"}])
    add_table(set_hub, [{"audio": audio(0), "text": "branch"}], ref="v2")
    add_table(set_hub, [{"audio": audio(0), "text": "new"}])
    found = {
        name: texts(read(f"hub:org/set{name}::test", language="ca"))
        for name in ("", "@v2", f"@{old}")
    }
    assert found == {"": ["new"], "@v2": ["branch"], f"@{old}": ["old"]}


# --- recordings -----------------------------------------------------------------------------------


class Clips(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: Sequence[Utterance]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return float(np.abs(load_audio(self.rows[number].audio)).sum())


def test_recordings_are_read_in_place_by_any_process(set_hub: Hub, tmp_path: Path) -> None:
    add_table(set_hub, [{"audio": audio(n), "text": f"text {n}"} for n in range(5)])
    rows = read("hub:org/set::test", language="ca")
    sources = [row.audio for row in rows]
    assert all(isinstance(source, ArrowAudio) and source.path is None for source in sources)
    assert str(sources[3]) == "hub:org/set::test, row 3"
    copies = pickle.loads(pickle.dumps(sources))
    assert copies == sources
    assert [source.open().read() for source in reversed(copies)] == [
        sound(n) for n in (4, 3, 2, 1, 0)
    ]
    files = []
    for number in range(5):
        files.append(AudioFile(tmp_path / f"{number}.wav"))
        files[-1].file.write_bytes(sound(number))
    assert [source.digest() for source in sources] == [file.digest() for file in files]
    wanted = [float(np.abs(load_audio(file)).sum()) for file in files]
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(Clips(rows), batch_size=None, num_workers=workers)
        assert list(loader) == wanted
    assert not list((tmp_path / "hf_home").rglob("*.wav"))  # nothing is unpacked
    here = [Utterance("x", file, "text", "ca", "asr") for file in files]
    (shared, *_) = shared_with(digests_of(here), digests_of(rows).sketches)
    assert (shared.kind, shared.count) == ("audio", 5)


def test_a_damaged_cache_is_told(set_hub: Hub) -> None:
    add_table(set_hub, [{"audio": audio(n), "text": "x"} for n in range(5)])
    (row, *_) = read("hub:org/set::test", language="ca")
    data = row.audio.file.read_bytes()
    row.audio.file.write_bytes(data[: len(data) // 2])
    assert "is damaged" in failure("hub:org/set::test", language="ca")
    row.audio.file.unlink()
    assert len(read("hub:org/set::test", language="ca")) == 5  # it is made again


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_fifo_in_the_cache_is_not_waited_for(set_hub: Hub) -> None:
    add_table(set_hub, [{"audio": audio(n), "text": "x"} for n in range(5)])
    (row, *_) = read("hub:org/set::test", language="ca")
    row.audio.file.unlink()
    os.mkfifo(row.audio.file)
    assert "is a FIFO, not a file" in failure("hub:org/set::test", language="ca")


def test_unusable_rows_are_counted_by_reason(set_hub: Hub) -> None:
    rows = [
        {"audio": audio(0), "text": "kept"},
        {"audio": audio(1), "text": None},
        {"audio": audio(2), "text": ""},
        {"audio": {"bytes": None, "path": None}, "text": "no audio"},
        {"audio": {"bytes": b"\x00\x01matroska", "path": "a.webm"}, "text": "unknown container"},
        {"audio": None, "text": "nothing"},
        {"audio": {"bytes": None, "path": "/etc/passwd"}, "text": "a path of a stranger's"},
    ]
    add_table(set_hub, rows)
    report = load_data([Path("hub:org/set::test")], language="ca")
    assert texts(report.utterances) == ["kept"]
    assert report.reasons == {
        "empty text": 2, "missing audio": 2, "unreadable audio": 1,
        "audio outside of the data set": 1,
    }  # fmt: skip
    unknown = next(drop for drop in report.drops if drop.reason == "unreadable audio")
    assert "hub:org/set::test, row 4 cannot be read as audio" in unknown.detail
    numbers = [{"audio": audio(n), "text": n} for n in range(3)]
    add_table(set_hub, numbers, {"audio": AUDIO, "text": "int64"}, name="org/numbers")
    assert "3 text is no string" in failure("hub:org/numbers::test", language="ca")


# --- columns --------------------------------------------------------------------------------------


def test_columns_may_be_named(set_hub: Hub) -> None:
    features = {
        "near": AUDIO, "far": AUDIO, "who": "string", "said": "string", "key": "int64",
        "tongue": "string",
    }  # fmt: skip
    row = {"near": audio(0), "far": audio(1), "who": "s", "said": "hola", "key": 7, "tongue": "cat"}
    add_table(set_hub, [row], features)
    known = "hub:org/set::test:audio=far,text=said,speaker=who,id=key,language=tongue"
    (found,) = read(known)
    assert found.audio.open().read() == sound(1)
    assert (found.text, found.speaker, found.id, found.language) == ("hola", "s", "7", "ca")
    for settings, words in {
        "text=said": "several columns of audio: near, far",
        "audio=far": "no column for the text that is known",
        "audio=far,text=siad": "has no column 'siad' for text=. Did you mean 'said'?",
        "audio=said,text=said": "the column 'said' is no audio: it is of the type string. "
        "The audio is in near or far",
        "audio=key": "the column 'key' is no audio: it is of the type int64",
    }.items():
        assert words in " ".join(failure(f"hub:org/set::test:{settings}", language="ca").split())


def test_a_set_without_audio(set_hub: Hub) -> None:
    add_table(set_hub, [{"text": "hola"}], {"text": "string"})
    told = failure("hub:org/set::test", language="ca")
    assert "has no column of audio. Its columns are text." in told


def test_bytes_without_a_feature_are_found_by_their_names(set_hub: Hub) -> None:
    import io

    import pyarrow
    from pyarrow import parquet

    columns = {"speech": pyarrow.array([audio(3)], CELL), "text": pyarrow.array(["hola"])}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    add_set(set_hub, "org/set", {"test.parquet": file.getvalue()})
    (row,) = read("hub:org/set::test", language="ca")
    assert row.audio.open().read() == sound(3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hub:", "names no data set"),
        ("hub:fleurs", "names no data set"),
        ("hub:a/b/c", "names no data set"),
        ("hub:../x:ca", "names no data set"),
        ("hub:a/b:c:d:e", "names no data set"),
        ("hub:a/b:text=x:test", "names no data set"),
        ("hub:a/b:c:d:txt=x", "there is no setting 'txt'. Did you mean 'text'?"),
        ("hub:a/b:c:d:text=", "text= names no column"),
        ("hub:a/b:c:d:text=x,text=y", "text= is given twice"),
        ("hub:a/b:c/../../d:test", "no name of a configuration or split"),
        ("hub:a/b:..:test", "no name of a configuration or split"),
    ],
)
def test_references_that_are_none(text: str, words: str) -> None:
    with pytest.raises(UsageFault, match=re.escape(words)):
        manifest_splits(Path(text))


def test_a_reference_is_written_as_it_is_read() -> None:
    for text in ("hub:a/b", "hub:a/b@v1:c", "hub:a/b::test", "hub:a/b@refs/pr/1:c:d:text=x,id=y",
                 "hub:a/b:text=x"):  # fmt: skip
        assert str(parse_reference(text)) == text


def test_a_local_file_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.wav").write_bytes(sound(0))
    Path("hub:a.jsonl").write_text('{"audio_filepath": "0.wav", "text": "x", "lang": "ca"}\n')
    assert texts(read("hub:a.jsonl")) == texts(read("./hub:a.jsonl")) == ["x"]


# --- what a set lacks, and who may read it ----------------------------------------------------------


def test_configurations_and_splits_are_listed(set_hub: Hub) -> None:
    add_set(set_hub, "google/fleurs", fleurs_files())
    add_table(set_hub, [{"audio": audio(0), "text": "x"}])
    known = "ca_es, cmn_hans_cn, en_us"
    for reference, words in {
        "hub:google/fleurs": f"several configurations, and none is named. Write "
        f"hub:google/fleurs:CONFIG with one of: {known}.",
        "hub:google/fleurs:ca:test": f"no configuration 'ca'. Did you mean 'ca_es'? Known: {known}.",
        "hub:google/fleurs:ca_es:tset": "no split 'tset' in 'ca_es'. It has: train, validation, test.",
        "hub:org/set:test": "no configuration 'test'. It has one alone: write hub:org/set::SPLIT",
        "hub:org/set::train": "no split 'train'. It has: test.",
        "hub:google/fleurs:ca_es": "has several splits. Give --split with one of: train, dev, test.",
    }.items():
        assert words in " ".join(failure(reference, language="ca").split())
    assert fetched(set_hub) == []


def test_sets_that_are_not_there(
    set_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add_table(set_hub, [{"audio": audio(0), "text": "x"}])
    monkeypatch.chdir(tmp_path)
    Path("data/ca").mkdir(parents=True)
    for reference, words in {
        "hub:org/sett::test": "There is no data set org/sett at",
        "hub:data/ca": "data/ca is here: leave out hub: to read that.",
        "hub:org/set@v9::test": "org/set has no revision 'v9'",
        "org/set": "There is no data set org/set. Check the path. A data set on the Hub is hub:org/set.",
    }.items():
        assert words in " ".join(failure(reference, language="ca").split())
    assert "/datasets/org/set/refs lists" in failure("hub:org/set@v9::test")


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("configs: 7", "Expected configs to be a list"),
        ("configs:\n- 3", "not iterable"),
        ("configs: &a\n- *a", "config_name"),
        ("configs: [", ""),
        ("configs:\n- config_name: ../../evil\n  data_files: data/*", "Bad characters"),
        ("configs:\n- config_name: a\n  data_files: 5", "Expected data_files in YAML"),
        ("dataset_info:\n  features: 5", "Expected a dict or a list"),
        ("dataset_info:\n  features:\n  - name: audio\n    dtype: ear", "Feature type 'Ear'"),
    ],
)
def test_cards_that_the_library_does_not_understand(set_hub: Hub, card: str, words: str) -> None:
    rows = [{"audio": audio(0), "text": "x"}]
    files = {"data/test-00000-of-00001.parquet": table(rows, SPOKEN)}
    add_set(set_hub, "org/set", {"README.md": f"---\n{card}\n---\n", **files})
    for reference in ("hub:org/set", "hub:org/set:a:test", "hub:org/set::test"):
        found = failure(reference, language="ca")
        assert "org/set cannot be used by `datasets`: " in found
        assert words in found
        assert "/datasets/org/set/discussions." in found


def test_gated_sets_say_how_to_accept(set_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    add_table(set_hub, [{"audio": audio(0), "text": "x"}], name="other/set", gated=True)
    told = failure("hub:other/set::test", language="ca")
    assert "other/set is gated, and you have no access to it." in told
    assert f"Ask for access at {set_hub.url}/datasets/other/set, then log in" in told
    monkeypatch.delenv("HF_TOKEN")
    forget_lookups()
    assert "is gated" in failure("hub:other/set::test", language="ca")
    monkeypatch.setenv("HF_TOKEN", READER)
    add_table(set_hub, [{"audio": audio(0), "text": "x"}], name="lab/set", private=True)
    forget_lookups()
    assert len(read("hub:lab/set::test", language="ca")) == 1
    monkeypatch.setenv("HF_TOKEN", WRITER)


def test_a_set_with_a_script_is_read_from_the_hubs_own_parquet(set_hub: Hub) -> None:
    add_set(set_hub, "google/fleurs", {"fleurs.py": "import datasets", "README.md": "# FLEURS"})
    told = failure("hub:google/fleurs:ca_es:test")
    assert (
        "a script of its own (fleurs.py), which the library `datasets` runs no more, and the Hub "
        in told
    )
    forget_lookups()
    rows = [{"audio": audio(n), "transcription": "x"} for n in range(2)]
    files = {
        f"{config}/{split}/0000.parquet": table(rows, {"audio": AUDIO, "transcription": "string"})
        for config, split in (("ca_es", "test"), ("ca_es", "partial-train"), ("de_de", "test"))
    }
    commit = add_set(set_hub, "google/fleurs", files, ref="refs/convert/parquet")
    report = load_data([Path("hub:google/fleurs:ca_es:test")])
    assert [row.language for row in report.utterances] == ["ca", "ca"]
    assert (
        "has a script that `datasets` runs no more: the Parquet that the Hub made"
        in report.notes[0]
    )
    assert report.hub[0].startswith(f"hub:google/fleurs@{commit}:ca_es:test:")
    again = load_data([Path(report.hub[0])])
    assert again.utterances == report.utterances
    assert "has only the first part" in load_data([Path("hub:google/fleurs:ca_es:train")]).notes[1]
    for reference, words in {
        "hub:google/fleurs:ca:test": "Did you mean 'ca_es'? Known: ca_es, de_de.",
        "hub:google/fleurs::test": "several configurations, and none is named",
        "hub:google/fleurs@main:de_de:dev": "has no split 'dev' in 'de_de'. It has: test.",
    }.items():
        assert words in failure(reference)
    add_set(set_hub, "google/fleurs", {"fleurs.py": ""}, ref="v1")
    assert "the Hub's Parquet of it is not that of 'v1'" in failure(
        "hub:google/fleurs@v1:ca_es:test"
    )


def test_files_that_are_no_table(set_hub: Hub) -> None:
    add_set(set_hub, "org/text", {"README.md": "# nothing"})
    assert "org/text has no files that the library `datasets` reads" in failure(
        "hub:org/text::test"
    )
    add_set(set_hub, "org/bad", {"data/test-00000-of-00001.parquet": b"PAR1\0 no more"})
    told = failure("hub:org/bad::test")
    assert "the files of 'test' cannot be read as a table" in told
    assert f"{set_hub.url}/datasets/org/bad/discussions" in told


def test_a_folder_of_audio_is_to_be_fetched(set_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"test/{n}.wav": sound(n) for n in range(2)}
    add_set(
        set_hub, "org/folder", files | {"test/metadata.csv": "file_name,text\n0.wav,a\n1.wav,b\n"}
    )
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # whether it is installed or not
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", None)
    told = failure("hub:org/folder::test", language="ca")
    assert "`datasets` needs another library" in told
    assert (
        "`hf download org/folder --repo-type dataset --local-dir FOLDER`, and give FOLDER" in told
    )


def test_a_disk_that_is_too_small(set_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    add_table(set_hub, [{"audio": audio(0), "text": "x"}])
    full = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(data_sets, "shutil", full)
    told = failure("hub:org/set::test", language="ca")
    assert "bytes of Arrow files to write, and" in told
    assert "set HF_DATASETS_CACHE to a folder on a larger disk" in told


def test_without_the_library_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for reference in ("hub:org/set::test", "hub:org/set"):
        with pytest.raises(LorsmergeError, match=r"pip install 'lorsmerge\[hub\]'"):
            manifest_splits(Path(reference))


# --- network and cache ----------------------------------------------------------------------------


def offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process with HF_HUB_OFFLINE set."""
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    forget_lookups()
    hub.calls.clear()


def test_what_is_cached_is_read_without_the_hub(
    set_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_set(set_hub, "google/fleurs", fleurs_files())
    rows = read("hub:google/fleurs:ca_es:test")
    offline(set_hub, monkeypatch)
    assert read("hub:google/fleurs:ca_es:test") == rows
    assert manifest_splits(Path("hub:google/fleurs:ca_es")) == ("test",)
    assert "It" not in failure("hub:google/fleurs:ca_es:train")
    assert "no split 'train' in 'ca_es'. The cache has: test." in failure(
        "hub:google/fleurs:ca_es:train"
    )
    assert "HF_HUB_OFFLINE is set" in failure("hub:google/fleurs:en_us:test")
    assert "org/other is not in" in failure("hub:org/other::test")
    assert set_hub.calls == []


def test_a_script_set_is_cached_too(set_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    add_set(set_hub, "org/set", {"set.py": ""})
    files = {"ca/test/0000.parquet": table([{"audio": audio(0), "text": "x"}], SPOKEN)}
    add_set(set_hub, "org/set", files, ref="refs/convert/parquet")
    rows = read("hub:org/set:ca:test")
    offline(set_hub, monkeypatch)
    assert read("hub:org/set:ca:test") == rows


def test_a_set_that_the_library_has_prepared_is_used(
    set_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    add_set(set_hub, "google/fleurs", fleurs_files())
    datasets.load_dataset("google/fleurs", "ca_es")
    set_hub.calls.clear()
    rows = read("hub:google/fleurs:ca_es:test")
    assert "/lorsmerge/" not in str(rows[0].audio.file)
    assert fetched(set_hub) == []
    offline(set_hub, monkeypatch)
    assert read("hub:google/fleurs:ca_es:test") == rows
    assert manifest_splits(Path("hub:google/fleurs:ca_es")) == ("test", "train", "dev")


def test_our_cache_is_not_taken_for_a_whole_set(set_hub: Hub) -> None:
    import datasets

    add_set(set_hub, "google/fleurs", fleurs_files())
    read("hub:google/fleurs:ca_es:test")
    assert len(datasets.load_dataset("google/fleurs", "ca_es", split="train")) == 6


def test_a_connection_that_drops(set_hub: Hub) -> None:
    add_set(set_hub, "google/fleurs", fleurs_files())
    set_hub.fail("GET", "/ca_es/test-", drop_after=100, times=50)
    told = failure("hub:google/fleurs:ca_es:test")
    assert "google/fleurs" in told
    assert "Check the network and run the command again" in told
    set_hub.heal()
    forget_lookups()
    assert len(read("hub:google/fleurs:ca_es:test")) == 6
    for part in ("/api/datasets/google/fleurs", "/tree/"):
        set_hub.fail("GET", part, status=503, times=50)
        forget_lookups()
        with pytest.raises(HubFault, match=r"google/fleurs"):
            read("hub:google/fleurs:en_us:test")
        set_hub.heal()


def test_a_file_of_the_cache_that_is_replaced_is_read_anew(set_hub: Hub) -> None:
    add_table(set_hub, [{"audio": audio(0), "text": "x"}])
    (row,) = read("hub:org/set::test", language="ca")
    before = FileIdentity.of(row.audio.file)
    data = row.audio.file.read_bytes()
    row.audio.file.unlink()
    row.audio.file.write_bytes(data)
    assert FileIdentity.of(row.audio.file) != before
    assert row.audio.open().read() == sound(0)
