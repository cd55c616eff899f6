"""Subsets of some hours: the same rows everywhere, found without looking at the others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from lorsmerge_cli.data import selection
from lorsmerge_cli.data.audio import UnreadableAudio
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.conditions import parse_conditions
from lorsmerge_cli.data.dataset import check_complete, drop_warnings, load_data
from lorsmerge_cli.data.hours import Hours, parse_hours
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.errors import LorsmergeError, UsageFault
from lorsmerge_cli.operations.data import data

RATE = 16_000
DAMAGED = -1.0  # as a length


class Audio:
    """Headers of recordings that nobody wrote, and which of them were read."""

    def __init__(self, patch: pytest.MonkeyPatch, lengths: Mapping[str, float]) -> None:
        self.lengths, self.read = lengths, list[str]()
        patch.setattr(AudioFile, "exists", lambda source: True)
        patch.setattr(selection, "ends_early", lambda source: False)
        patch.setattr(selection, "audio_seconds", self.seconds)

    def seconds(self, source: AudioFile) -> float:
        self.read.append(source.file.name)
        if self.lengths[source.file.name] == DAMAGED:
            raise UnreadableAudio("It is damaged.")
        return self.lengths[source.file.name]


def rows_of(lengths: Sequence[float], languages: str = "ca") -> list[Utterance]:
    known = languages.split()
    return [
        Utterance(f"u{n}", AudioFile(Path(f"{n}")), "x", known[n % len(known)], "asr")
        for n in range(len(lengths))
    ]


def plain_subset(
    rows: Sequence[Utterance],
    lengths: Mapping[str, float],
    seconds: float,
    longest: float,
    seed: int,
) -> tuple[list[str], list[str]]:
    """Ids that are taken, and names of the files looked at: all rows are checked, then some taken."""
    order = sorted(range(len(rows)), key=lambda n: selection.rank(rows[n].id, seed))
    total, taken, seen = 0.0, set(), list[str]()
    for number in order:
        if total >= seconds:
            break
        length = lengths[rows[number].audio.file.name]
        seen.append(rows[number].audio.file.name)
        if 0 < length <= longest:
            taken.add(rows[number].id)
            total += length
    return [row.id for row in rows if row.id in taken], seen


@given(
    st.lists(st.one_of(st.floats(0.1, 40), st.sampled_from([DAMAGED, 0.0, 30.0, 10.0])), max_size=60),
    st.floats(0.5, 600), st.sampled_from([5.0, 30.0]), st.integers(0, 3),
)  # fmt: skip
def test_a_subset_is_that_of_all_rows_and_reads_no_more_headers(
    lengths: list[float], seconds: float, longest: float, seed: int
) -> None:
    rows, known = rows_of(lengths), {f"{n}": length for n, length in enumerate(lengths)}
    wanted, seen = plain_subset(rows, known, 3600 * (seconds / 3600), longest, seed)
    with pytest.MonkeyPatch.context() as patch:
        audio = Audio(patch, known)
        found = selection.select(rows, max_seconds=longest, hours=seconds / 3600, seed=seed)
    assert [row.id for row in found.utterances] == wanted
    assert sorted(audio.read) == sorted(seen)
    assert found.unseen == len(rows) - len(seen)
    assert len(found.utterances) + len(found.drops) + found.unseen == len(rows)


def test_all_rows_are_looked_at_without_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = Audio(monkeypatch, {f"{n}": 1.0 for n in range(50)})
    found = selection.select(rows_of([1.0] * 50), max_seconds=30)
    assert len(audio.read) == len(found.utterances) == 50
    assert found.unseen == 0


def test_hours_of_a_language(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [float(1 + n % 5) for n in range(90)]
    rows, known = rows_of(lengths, "ca de fr"), {f"{n}": x for n, x in enumerate(lengths)}
    Audio(monkeypatch, known)
    own = {code: [row for row in rows if row.language == code] for code in ("ca", "de", "fr")}

    def taken(hours: Any) -> dict[str, list[str]]:
        found = selection.select(rows, max_seconds=30, hours=hours).utterances
        numbers = [int(row.id[1:]) for row in found]
        assert numbers == sorted(numbers)
        return {code: [r.id for r in found if r.language == code] for code in own}

    found = taken({"ca": 10 / 3600, "de": 20 / 3600})
    for code, seconds in (("ca", 10.0), ("de", 20.0)):
        assert found[code] == plain_subset(own[code], known, seconds, 30, 0)[0]
    assert found["fr"] == [row.id for row in own["fr"]]  # no hours of its own: all of it
    found = taken(["0.005", "German=0.002"])
    others = [row for row in rows if row.language != "de"]
    assert found["de"] == plain_subset(own["de"], known, 7.2, 30, 0)[0]
    assert {*found["ca"], *found["fr"]} == {*plain_subset(others, known, 18.0, 30, 0)[0]}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, None), ((), None), (5, Hours(5.0)), ("5", Hours(5.0)), (["5"], Hours(5.0)),
        ("ca_es=0.5", Hours(None, (("ca", 0.5),))), ({"Catalan": 1, "de": 2}, Hours(None, (("ca", 1.0), ("de", 2.0)))),
        ((1, "de=2"), Hours(1.0, (("de", 2.0),))), (Hours(1.0), Hours(1.0)),
    ],
)  # fmt: skip
def test_ways_to_give_hours(given: Any, wanted: Hours | None) -> None:
    assert parse_hours(given) == wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("0", "--hours 0 is not more than 0"), ("-1", "not more than 0"), ("inf", "not a finite number"),
        ("nan", "not a finite number"), ("five", "--hours five is no number of hours. Write --hours 5"),
        ("ca=", "--hours ca= is no number"), ("=5", "names no language"), ("xx=5", "no language 'xx'"),
        (["ca=1", "Catalan=2"], "ca is given twice"), (["1", "2"], "each data set is given twice"),
        ("ca=1,de=2", "no number of hours"), ({"": 3, "ca": -1}, "ca=-1 is not more than 0"),
    ],
)  # fmt: skip
def test_hours_that_are_none(given: Any, message: str) -> None:
    with pytest.raises(UsageFault) as caught:
        parse_hours(given)
    assert message in str(caught.value)


# --- data sets ------------------------------------------------------------------------------------


def clip(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(np.arange(round(seconds * RATE)) / 9), RATE)


def manifest(path: Path, languages: str, count: int = 12) -> Path:
    clip(path.parent / "one.wav", 1.0)
    known = languages.split()
    rows = [
        {"id": f"{path.stem}{n}", "audio_filepath": "one.wav", "text": "x",
         "source_lang": known[n % len(known)]}
        for n in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_language_that_no_data_set_has(tmp_path: Path) -> None:
    both = [manifest(tmp_path / f"{code}.jsonl", code) for code in ("ca", "de")]
    asked = {"ca": 3 / 3600, "de": 5 / 3600}
    for found in (load_data(both, hours=asked), data(both, hours=asked)):
        languages = [row.language for row in found.utterances]
        assert (languages.count("ca"), languages.count("de"), found.unseen) == (3, 5, 16)
    for run in (lambda hours: load_data(both, hours=hours), lambda hours: data(both, hours=hours)):
        with pytest.raises(UsageFault, match=r"--hours fr=1: no row of .* It has: ca, de\."):
            run({"ca": 1, "fr": 1})
    with pytest.raises(UsageFault, match=r"--hours de=1: no row of .*ca.jsonl is in that language"):
        data(both[:1], hours="de=1")


def test_a_language_that_hours_leave_out_is_told(tmp_path: Path) -> None:
    path = manifest(tmp_path / "all.jsonl", "ca de", count=20)
    told = [load_data([path], hours=seconds / 3600).notes for seconds in (1, 20)]
    assert len(told[0]) == 1
    assert re.search(r"--hours takes have none of '(ca|de)'\..*--hours (ca|de)=0\.1", told[0][0])
    assert told[1] == ()
    assert load_data([path], hours={"ca": 2 / 3600, "de": 2 / 3600}).notes == ()


def test_what_was_not_looked_at_is_told(tmp_path: Path) -> None:
    path = manifest(tmp_path / "ca.jsonl", "ca", count=50)
    with path.open("a") as file:
        file.writelines(
            json.dumps({"id": f"gone{n}", "audio_filepath": "gone.wav", "text": "x", "source_lang": "ca"})
            + "\n" for n in range(50)
        )  # fmt: skip
    report = load_data([path], hours=10 / 3600, decoded=True)
    assert len(report.utterances) == 10
    lost = report.reasons["missing audio"]
    assert lost + 10 + report.unseen == 100
    assert f"{lost} of {lost + 10} rows are dropped" in drop_warnings(report)[0]
    assert drop_warnings(report)[0].endswith(f" {report.unseen} rows were not looked at.")


def test_a_condition_on_durations_counts_for_the_hours(tmp_path: Path) -> None:
    path = manifest(tmp_path / "ca.jsonl", "ca", count=20)
    clip(tmp_path / "two.wav", 2.0)
    text = path.read_text().splitlines()
    path.write_text(
        "\n".join(line.replace("one", "two") if n % 2 else line for n, line in enumerate(text))
    )
    report = load_data([path], hours=8 / 3600, conditions=parse_conditions(where=["duration>1.5"]))
    assert [row.duration for row in report.utterances] == [2.0] * 4
    assert report.reasons.get("not asked for", 0) + 4 + report.unseen == 20


# --- clip_durations.tsv ---------------------------------------------------------------------------


def common_voice(folder: Path, durations: str) -> Path:
    for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 4.0)):
        clip(folder / "clips" / f"{name}.wav", seconds)
    rows = "".join(f"s\t{name}.wav\tx\n" for name in "abc")
    (folder / "train.tsv").write_text("client_id\tpath\tsentence\n" + rows)
    (folder / "clip_durations.tsv").write_text(durations)
    return folder


@pytest.mark.parametrize("head", ["clip", "filename"])
def test_the_table_of_durations_is_compared_with_the_clips(tmp_path: Path, head: str) -> None:
    table = f"{head}\tduration[ms]\na.wav\t1004\nb.wav\t3000\nc.wav\t2000\nother.wav\tx\n"
    folder = common_voice(tmp_path / "ca", table)
    report = load_data([folder], split="train")
    assert {row.id: row.duration for row in report.utterances} == {"a": 1.0, "c": 2.0}
    assert report.reasons == {"audio ends before the row does": 1}
    assert [part.row.id for part in report.parts] == ["c"]
    with pytest.raises(LorsmergeError, match="audio ends before the row does"):
        check_complete(report, folder)


@pytest.mark.parametrize(
    "table",
    ["clip\tduration[ms]\n", "clip\tlength\na.wav\t9\n", "clip\tduration[ms]\na.wav\t0\nb.wav\t-5\nc.wav\t\n"],
)  # fmt: skip
def test_a_table_that_says_nothing_changes_nothing(tmp_path: Path, table: str) -> None:
    report = load_data([common_voice(tmp_path / "ca", table)], split="train")
    assert [row.duration for row in report.utterances] == [1.0, 2.0, 4.0]
    assert not report.parts
