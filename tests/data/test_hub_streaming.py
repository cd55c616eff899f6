"""The first rows of a split on the Hub: only these are fetched, whatever breaks meanwhile."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hub_data import AUDIO, FLEURS, add_set, card, fleurs_files, fleurs_rows, labels, sound, table
from hub_server import Hub, forget_lookups
from huggingface_hub import constants

from lorsmerge_cli.data.dataset import drop_warnings, load_data
from lorsmerge_cli.data.readers import read_manifest
from lorsmerge_cli.data.readers.hub import parse_reference
from lorsmerge_cli.data.streaming import as_first_hours, first_hours, with_hours
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import HubFault, LorsmergeError, OutputFault, UsageFault
from lorsmerge_cli.hub import first_rows

SPOKEN = {"audio": AUDIO, "text": "string"}
SET = "hub:org/set:ca:train"
FILES = ("ca/train-00000-of-00002.parquet", "ca/train-00001-of-00002.parquet")
ENGLISH_TEST = "en_us/test-00000-of-00001.parquet"
EACH = 0.9  # seconds of a row


def spoken(first: int, end: int, **about: Any) -> list[dict[str, Any]]:
    return [
        {"audio": {"bytes": sound(n, seconds=EACH), "path": f"clip{n:03}.wav"}, "text": f"t{n}"} | about
        for n in range(first, end)
    ]  # fmt: skip


def of_rows(count: int, reference: str = SET) -> Path:
    """A reference to as many hours as so many rows have."""
    return Path(f"{reference}:first={(count - 0.5) * EACH / 3600:.8f}")


def texts(rows: Sequence[Utterance]) -> list[str]:
    return [row.text for row in rows]


def numbered(end: int) -> list[str]:
    return [f"t{n}" for n in range(end)]


def ranges(hub: Hub) -> list[tuple[str, int, int]]:
    """What was asked for of Parquet files: the file's number, and first and last byte."""
    found = []
    for call in hub.seen("GET", ".parquet"):
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", call.headers.get("range", ""))
        assert match, f"all of {call.path} was fetched"
        found.append((call.path.rpartition("/")[2], int(match[1]), int(match[2])))
    return found


def served(hub: Hub) -> int:
    return sum(last - first + 1 for _, first, last in ranges(hub))


@pytest.fixture
def stocked(set_hub: Hub) -> Hub:
    """org/set has 48 rows in two files, in row groups of 6."""
    files: dict[str, str | bytes] = {"README.md": card({"ca": ("train",), "de": ("train",)})}
    files |= {
        name: table(spoken(24 * n, 24 * n + 24), SPOKEN, group=6) for n, name in enumerate(FILES)
    }
    add_set(set_hub, "org/set", files)
    set_hub.size = sum(len(files[name]) for name in FILES)  # type: ignore[attr-defined]
    return set_hub


def test_no_more_is_fetched_than_is_needed(stocked: Hub) -> None:
    report = load_data([of_rows(8)])
    assert texts(report.utterances) == numbered(8)
    assert report.hours == pytest.approx(8 * EACH / 3600)
    footer = 1 << 16  # what pyarrow reads of a file's end, at most
    assert 12 / 48 * 0.8 < (served(stocked) - footer) / stocked.size < 12 / 48 * 1.3  # type: ignore[attr-defined]
    assert {name for name, _, _ in ranges(stocked)} == {"train-00000-of-00002.parquet"}
    (note,) = drop_warnings(report)
    assert (
        f"{SET} is read in the split's order until there are 0.001875 hours: its first rows" in note
    )
    assert report.selected == ("a place in the first 0.001875 hours of the split",)
    commit = stocked.repos["datasets/org/set"].refs["main"]
    assert report.hub == (f"hub:org/set@{commit}:ca:train:first=0.001875,audio=audio,text=text",)
    again = load_data([Path(report.hub[0])])
    assert again.utterances == report.utterances


def test_what_is_there_is_not_fetched_again_and_changes_nothing(stocked: Hub) -> None:
    alone = load_data([of_rows(3)])
    forget_lookups()
    before = len(ranges(stocked))
    assert load_data([of_rows(5)]).utterances[:3] == alone.utterances
    assert len(ranges(stocked)) == before
    assert texts(load_data([of_rows(30)]).utterances) == numbered(30)  # in the second file
    wanted = ranges(stocked)
    groups = [each for each in wanted if each[2] - each[1] != (1 << 16) - 1]
    assert len(groups) == len(set(groups)) == 5
    assert load_data([of_rows(3)]).utterances == alone.utterances
    assert len(ranges(stocked)) == len(wanted)


def test_a_split_with_less_is_read_to_its_end(
    stocked: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = load_data([Path(f"{SET}:first=7")]).utterances
    assert texts(rows) == numbered(48)
    forget_lookups()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_data([Path(f"{SET}:first=7")]).utterances == rows


def test_without_the_hub_what_was_fetched_is_read(
    stocked: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = load_data([of_rows(8)]).utterances
    forget_lookups()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_data([of_rows(8)]).utterances == rows
    with pytest.raises(
        HubFault, match="More of the split 'train' than is here of org/set is needed"
    ):
        load_data([of_rows(14)])
    with pytest.raises(HubFault, match="The split 'train' of org/set is needed"):
        load_data([Path(SET)])


def test_a_split_that_is_here_as_a_whole_is_used(stocked: Hub) -> None:
    whole = load_data([Path(SET)]).utterances
    stocked.calls.clear()
    assert load_data([of_rows(8)]).utterances == whole[:8]
    assert stocked.seen("GET", ".parquet") == []


def test_rows_of_another_language_or_task_do_not_count(set_hub: Hub) -> None:
    rows = [
        row | {"lang": n % 2, "task": "st" if n % 3 == 0 else "asr"}
        for n, row in enumerate(spoken(0, 24))
    ]
    features = SPOKEN | {"lang": labels("ca", "de"), "task": "string"}
    add_set(set_hub, "org/two", {"train.parquet": table(rows, features, group=4)})
    path = of_rows(3, "hub:org/two::train:language=lang").as_posix().replace(":first", ",first")
    of_ca = load_data([Path(path)], language="ca")
    assert texts(of_ca.utterances) == ["t0", "t2", "t4"]
    assert texts(load_data([Path(path)], language="ca", task="asr").utterances) == [
        "t2",
        "t4",
        "t8",
    ]
    assert texts(load_data([Path(path)]).utterances) == ["t0", "t1", "t2"]
    (first, _) = read_manifest(Path(path), language="ca")
    assert {row.language for row in first} == {"ca"}


def test_hours_beside_it_are_those(stocked: Hub) -> None:
    path = Path(f"{SET}:first=0.002")
    assert texts(load_data([path], hours=["0.002"]).utterances) == numbered(8)
    assert len(load_data([path], hours=0.001).utterances) == 4  # by their hash, of the first 8


# --- what breaks ----------------------------------------------------------------------------------


def test_a_connection_that_drops_is_tried_again_from_its_row_group_on(
    stocked: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    assert texts(load_data([of_rows(3)]).utterances) == numbered(3)
    stocked.calls.clear()
    # the first answer, the file's end, is shorter than that; the next one breaks off in mid-body
    stocked.fail("GET", ".parquet", drop_after=70_000, times=2)
    assert texts(load_data([of_rows(10)]).utterances) == numbered(10)
    asked = [call.headers["range"] for call in stocked.seen("GET", ".parquet")]
    assert len(asked) == 3
    assert asked[1] == asked[2] != asked[0]


def test_a_connection_that_stays_away_keeps_what_was_fetched(
    stocked: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    load_data([of_rows(8)])
    old = ranges(stocked)
    stocked.calls.clear()
    forget_lookups()
    stocked.fail("GET", FILES[0], drop_after=1000, times=100)
    with pytest.raises(HubFault) as caught:
        load_data([of_rows(20)])
    assert "the connection broke" in str(caught.value)
    assert (
        caught.value.remedy
        == "Run the command again later: it goes on after the rows that are here."
    )
    assert len(ranges(stocked)) == 6  # five times again, with waiting
    stocked.heal()
    stocked.calls.clear()
    assert texts(load_data([of_rows(20)]).utterances) == numbered(20)
    footer = old[0]
    assert not set(ranges(stocked)) & set(old) - {footer}


def test_half_a_file_of_a_killed_process_is_not_believed(stocked: Hub, tmp_path: Path) -> None:
    load_data([of_rows(3)])
    (piece,) = tmp_path.rglob("*.first/*.arrow")
    part = piece.with_name("00000-00001.more.part")
    part.write_bytes(piece.read_bytes()[:100])
    assert texts(load_data([of_rows(10)]).utterances) == numbered(10)
    assert not part.exists()
    assert len([*tmp_path.rglob("*.first/*.arrow")]) == 2


def test_an_interruption_leaves_whole_files(
    stocked: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    load_data([of_rows(3)])
    with monkeypatch.context() as patched:
        patched.setattr(first_rows.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_data([of_rows(10)])
    assert len([*tmp_path.rglob("*.first/*.arrow")]) == 1
    assert texts(load_data([of_rows(10)]).utterances) == numbered(10)


def test_of_two_at_once_one_fetches(stocked: Hub) -> None:
    load_data([of_rows(3)])
    stocked.calls.clear()
    both = threading.Barrier(2)

    def read() -> list[str]:
        both.wait()
        return texts(load_data([of_rows(40)]).utterances)

    with ThreadPoolExecutor(2) as pool:
        found = [each.result() for each in [pool.submit(read), pool.submit(read)]]
    assert found == [numbered(40), numbered(40)]
    groups = [each for each in ranges(stocked) if each[2] - each[1] != (1 << 16) - 1]
    assert len(groups) == len(set(groups)) == 6


def test_a_full_disk_is_told(stocked: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(first_rows.os, "fsync", full)
    with pytest.raises(OutputFault, match="No space left on device"):
        load_data([of_rows(3)])


def test_what_is_no_parquet_is_not_streamed(set_hub: Hub) -> None:
    add_set(set_hub, "org/lines", {"train.jsonl": '{"text": "a"}\n'})
    with pytest.raises(
        LorsmergeError, match="org/lines cannot be streamed: its files of 'train' are no"
    ):
        load_data([Path("hub:org/lines::train:first=1")])
    add_set(
        set_hub, "org/odd", {"train.parquet": b"PAR1 is how it starts, and nothing follows PAR1"}
    )
    with pytest.raises(LorsmergeError, match="org/odd"):
        load_data([Path("hub:org/odd::train:first=1")])


def test_files_without_rows_are_passed(set_hub: Hub) -> None:
    files = {"train-0.parquet": table([], SPOKEN), "train-1.parquet": table(spoken(0, 3), SPOKEN)}
    add_set(set_hub, "org/gap", files)
    assert len(load_data([Path("hub:org/gap::train:first=1")], language="ca").utterances) == 3


def test_of_the_english_split_no_audio_is_fetched(
    set_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fleurs_files() | {ENGLISH_TEST: table(fleurs_rows("en_us", 60), FLEURS, group=60)}
    add_set(set_hub, "google/fleurs", files)
    for reference, count in {"ca_es:test:first=0.0002": 2, "ca_es:test": 4}.items():
        set_hub.calls.clear()
        rows = load_data([Path(f"hub:google/fleurs:{reference}")], task="st").utterances
        assert 0 < len(rows) <= count
        assert {row.text for row in rows} <= {
            "The girl sees birds.", "Grandfather buys bread, milk and honey.",
        }  # fmt: skip
        english = [call for call in set_hub.seen("GET", ".parquet") if "en_us" in call.path]
        parts = [re.fullmatch(r"bytes=(\d+)-(\d+)", call.headers["range"]) for call in english]
        served = sum(int(part[2]) - int(part[1]) for part in parts if part)
        assert all(parts)
        assert served < len(files[ENGLISH_TEST]) / 4
        assert bool(english) == (count == 2)  # and then they are here
    forget_lookups()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_data([Path("hub:google/fleurs:ca_es:test")], task="st").utterances == rows


def test_english_texts_that_are_not_here_are_told_without_the_hub(
    set_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_set(set_hub, "google/fleurs", fleurs_files())
    load_data([Path("hub:google/fleurs:ca_es:test")])
    forget_lookups()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubFault, match="More of the split 'test' than is here"):
        load_data([Path("hub:google/fleurs:ca_es:test")], task="st")


@pytest.mark.parametrize("lacking", [{"id"}, {"raw_transcription", "transcription"}])
def test_an_english_split_without_its_columns_is_told(set_hub: Hub, lacking: set[str]) -> None:
    kept = [{k: v for k, v in row.items() if k not in lacking} for row in fleurs_rows("en_us", 2)]
    columns = {name: kind for name, kind in FLEURS.items() if name not in lacking}
    add_set(set_hub, "google/fleurs", fleurs_files() | {ENGLISH_TEST: table(kept, columns)})
    with pytest.raises(LorsmergeError, match="en_us:test has no text by the id of its sentence"):
        load_data([Path("hub:google/fleurs:ca_es:test")], task="st")


def test_an_english_split_that_is_not_there(set_hub: Hub) -> None:
    files = {name: held for name, held in fleurs_files().items() if name != ENGLISH_TEST}
    files["README.md"] = card({"ca_es": ("train", "test"), "en_us": ("train",)})
    add_set(set_hub, "google/fleurs", files)
    with pytest.raises(LorsmergeError, match=r"no split 'test' in 'en_us'. It has: train"):
        load_data([Path("hub:google/fleurs:ca_es:test")], task="st")


# --- references -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["x", "0", "-1", "nan", "inf"])
def test_hours_that_are_none(value: str) -> None:
    with pytest.raises(UsageFault, match="is no number of hours"):
        parse_reference(f"{SET}:first={value}")


def test_the_option_writes_references() -> None:
    assert as_first_hours([Path(SET), Path("dev.jsonl")], ["0.5"]) == [
        Path(f"{SET}:first=0.5"), Path("dev.jsonl"),
    ]  # fmt: skip
    kept = ["hub:org/set:ca:train:first=2,text=raw", "a=hub:org/set@v1::test"]
    assert as_first_hours(kept, 0.25) == [kept[0], "a=hub:org/set@v1::test:first=0.25"]
    assert as_first_hours(["dev.jsonl"], 1, needed=False) == ["dev.jsonl"]
    assert first_hours(Path(kept[0])) == 2
    assert with_hours(Path(kept[0]), None) == Path(f"{SET}:text=raw")
    assert with_hours(Path("dev.jsonl"), 3) == Path("dev.jsonl")
    for hours in (None, ["ca=1"], ["1", "ca=1"]):
        with pytest.raises(UsageFault, match="needs --hours with one number"):
            as_first_hours([SET], hours)
    with pytest.raises(UsageFault, match="none is given"):
        as_first_hours(["dev.jsonl"], 1)
