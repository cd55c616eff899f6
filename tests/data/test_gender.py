"""Gender, where the data has it: read by every reader that meets it, never a reason to drop a row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorsmerge_cli.data.manifest import write_manifest
from lorsmerge_cli.data.readers import read_manifest


def test_json_lines(tmp_path: Path) -> None:
    given = [("gender", "Female "), ("sex", "male"), ("gender", 1), ("gender", None), ("gender", ["x"]), ("gender", "")]  # fmt: skip
    lines = [
        {"audio": f"{n}.wav", "text": "a", "language": "ca", key: value}
        for n, (key, value) in enumerate(given)
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, drops = read_manifest(path)
    assert [row.gender for row in found] == ["female", "male", None, None, None, None]
    assert not drops
    write_manifest(tmp_path / "again.jsonl", found, force=False)
    again, _ = read_manifest(tmp_path / "again.jsonl")
    assert [row.gender for row in again] == [row.gender for row in found]


@pytest.mark.parametrize("translated", [False, True])
def test_common_voice_and_what_is_joined_with_it(tmp_path: Path, translated: bool) -> None:
    folder = tmp_path / "ca"
    (folder / "clips").mkdir(parents=True)
    table = "path\tsentence\tclient_id\tgender\na.mp3\tbon dia\ts1\tfemale_feminine\nb.mp3\tadeu\ts2\t\n"  # fmt: skip
    for name in ("test", "validated"):
        (folder / f"{name}.tsv").write_text(table)
    if translated:
        lines = "path\ttranslation\tsplit\na.mp3\tgood day\ttest\nb.mp3\tbye\ttest\n"
        (folder / "covost_v2.ca_en.tsv").write_text(lines)
    found, _ = read_manifest(folder, split="test")
    assert [(row.task, row.gender) for row in found] == [
        ("st" if translated else "asr", gender) for gender in ("female_feminine", None)
    ]
