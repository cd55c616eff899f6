"""Rows that give a shorter duration than their file has, and no offset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lorsmerge_cli.data.dataset import drop_warnings, load_data
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.operations.data import data

RATE, WHOLE = 16_000, 8.0  # Hz, seconds of a file


def written(path: Path, *rows: dict[str, Any]) -> Path:
    for name in ("a", "b"):
        samples = np.random.default_rng(0).standard_normal(round(WHOLE * RATE)) / 10
        soundfile.write(path.parent / f"{name}.wav", samples, RATE)
    common = {"audio_filepath": "a.wav", "text": "a", "source_lang": "ca", "taskname": "asr"}
    lines = [json.dumps(common | {"id": f"u{n}"} | row) + "\n" for n, row in enumerate(rows)]
    path.write_text("".join(lines))
    return path


def told(report: Any) -> list[str]:
    return [text for text in drop_warnings(report) if "part of their file" in text]


def test_they_are_told_with_the_share_that_is_heard(tmp_path: Path) -> None:
    rows = [{"duration": 2.0}, {"duration": 4.0}, {"duration": WHOLE}, {}, {}]
    report = load_data([written(tmp_path / "m.jsonl", *rows)])
    assert [row.duration for row in report.utterances] == [2.0, 4.0, WHOLE, WHOLE, WHOLE]
    (text,) = told(report)  # 6 of 16 seconds
    assert text.startswith("2 of 5 rows use a part of their file, 38% of the audio")


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"duration": WHOLE - 0.3}, False),  # within 5%, as an encoder pads chunks
        ({"duration": WHOLE - 0.5}, True),
        ({"duration": WHOLE + 0.2}, False),
        ({"duration": 2.0, "offset": 0}, False),
        ({"duration": 2.0, "offset": 0.0}, False),
        ({"duration": 2.0, "offset": -0.001}, False),
        ({"duration": 2.0, "offset": 3.0}, False),
        ({"duration": 2.0, "offset": None}, True),
        ({"duration": None}, False),
    ],
)
def test_which_rows_are_parts_that_nobody_asked_for(
    tmp_path: Path, row: dict[str, Any], part: bool
) -> None:
    report = load_data([written(tmp_path / "m.jsonl", row, {}, {})])
    assert len(told(report)) == part


@pytest.mark.parametrize(("parts", "refused"), [(2, False), (3, True), (4, True)])
def test_most_rows_being_parts_is_an_error(tmp_path: Path, parts: int, refused: bool) -> None:
    path = written(tmp_path / "m.jsonl", *parts * [{"duration": WHOLE / 60}], *(4 - parts) * [{}])
    if not refused:
        assert len(load_data([path]).utterances) == 4
        return
    with pytest.raises(
        LorsmergeError,
        match=rf"m.jsonl: {parts} of 4 rows use a part of their file, 2% of the audio, the first 0.13 "
        r"of the 8.00 s of .*a\.wav.*another unit or column.*--allow-parts",
    ):
        load_data([path])
    assert len(told(load_data([path], allow_parts=True))) == 1


def test_one_set_of_several_is_refused_by_its_name(tmp_path: Path) -> None:
    good = written(tmp_path / "good.jsonl", {}, {}, {}, {})
    bad = written(tmp_path / "bad.jsonl", {"duration": 1.0})
    with pytest.raises(LorsmergeError, match=r"bad\.jsonl: 1 of 1 rows use a part"):
        load_data([good, bad])


def test_kaldis_segments_are_asked_for(tmp_path: Path) -> None:
    written(tmp_path / "unused.jsonl")
    (tmp_path / "wav.scp").write_text(f"rec {tmp_path / 'a.wav'}\n")
    (tmp_path / "text").write_text("x one\ny two\n")
    (tmp_path / "segments").write_text("x rec 0 2\ny rec 2 4\n")
    assert not told(load_data([tmp_path], language="ca"))


def write(path: Path, output: Path, **options: bool) -> Any:
    return data(
        [path], output=output, force=True, **options,
    )  # fmt: skip


def test_what_was_allowed_is_written_with_an_offset(tmp_path: Path) -> None:
    path = written(tmp_path / "m.jsonl", {"duration": 1.0}, {"duration": 2.0}, {"duration": WHOLE})
    output = tmp_path / "out.jsonl"
    write(path, output, allow_parts=True)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row.get("offset") for row in rows] == [0.0, 0.0, None]
    again = load_data([output])
    assert [row.duration for row in again.utterances] == [1.0, 2.0, WHOLE]
    assert not told(again)


def test_what_was_not_allowed_is_told_of_what_was_written_too(tmp_path: Path) -> None:
    path = written(tmp_path / "m.jsonl", {"duration": 1.0}, {}, {})
    output = tmp_path / "out.jsonl"
    assert told(write(path, output)) == told(load_data([output])) != []


def test_a_check_drops_them_unless_they_are_allowed(tmp_path: Path) -> None:
    path = written(tmp_path / "m.jsonl", {"duration": 1.0}, {"duration": 2.0}, {"duration": WHOLE})
    report = load_data([path], checked=True)
    assert report.reasons == {"audio is longer than its row": 2}
    assert [drop.detail.partition(" has ")[2] for drop in report.bad] == [
        "8.00 s, and the row 1.00 s", "8.00 s, and the row 2.00 s",
    ]  # fmt: skip
    report = load_data([path], checked=True, allow_parts=True)
    assert len(report.utterances) == 3
    assert len(told(report)) == 1


def test_a_subset_tells_of_its_own_rows(tmp_path: Path) -> None:
    rows = [{"duration": 2.0} if n % 5 == 0 else {} for n in range(40)]
    report = load_data([written(tmp_path / "m.jsonl", *rows)], hours=0.02)
    taken = {row.id for row in report.utterances}
    assert len(taken) < 40
    count = sum(f"u{n}" in taken for n in range(0, 40, 5))
    assert told(report)[0].startswith(f"{count} of {len(taken)} rows use")


def test_a_duration_that_was_rounded_down_cuts_nothing_off(tmp_path: Path) -> None:
    rows = [{"duration": WHOLE - 0.2}, {"duration": WHOLE - 0.2, "offset": 0}]
    report = load_data([written(tmp_path / "m.jsonl", *rows)])
    assert [row.duration for row in report.utterances] == [WHOLE, pytest.approx(WHOLE - 0.2)]


def test_an_offset_of_zero_leaves_a_whole_file_whole(tmp_path: Path) -> None:
    """Or it would be other audio than the same row without one, where audio is compared."""
    rows = [{"duration": WHOLE, "offset": 0}, {"duration": WHOLE}, {"duration": 2.0, "offset": 0}]
    report = load_data([written(tmp_path / "m.jsonl", *rows)])
    assert [row.whole for row in report.utterances] == [True, True, False]
