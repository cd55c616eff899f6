"""Rows by what their columns hold, in every format."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import soundfile
from hub_data import AUDIO, add_set, audio, fleurs_files, labels, table
from hub_server import Hub
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lorsmerge_cli.data.conditions import Wanted, parse_conditions
from lorsmerge_cli.data.dataset import drop_warnings, load_data
from lorsmerge_cli.data.report import DataReport
from lorsmerge_cli.errors import LorsmergeError, UsageFault
from lorsmerge_cli.operations.data import data

RATE = 16_000


def clip(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * RATE)) / RATE
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 300 * time), RATE)
    return path


def manifest(folder: Path, *rows: dict[str, Any]) -> Path:
    """Rows a, b, c, ... of 1 s, 2 s, 3 s, ..."""
    lines = []
    for number, row in enumerate(rows):
        name = chr(ord("a") + number)
        clip(folder / f"{name}.wav", 1.0 + number)
        lines.append({"audio_filepath": f"{name}.wav", "text": "hola", "source_lang": "ca"} | row)
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def chosen(
    path: Path, *where: str, only: Sequence[str] = (), **options: Any
) -> tuple[list[str], DataReport]:
    report = load_data([path], conditions=parse_conditions(only, where), **options)
    return [row.id for row in report.utterances], report


def refused(path: Path, *where: str, only: Sequence[str] = (), **options: Any) -> str:
    with pytest.raises(UsageFault) as caught:
        chosen(path, *where, only=only, **options)
    return str(caught.value)


# --- the language ---------------------------------------------------------------------------------

SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
NUMBERS = st.integers(-5, 5) | st.floats(-5, 5, allow_nan=False)


@given(
    st.lists(NUMBERS | st.none() | st.just(math.nan), min_size=1),
    NUMBERS,
    st.sampled_from([*SIGNS]),
)
def test_numbers_are_compared_as_python_compares_them(
    cells: list[float | None], value: float, sign: str
) -> None:
    (condition,) = parse_conditions(where=[f"x {sign} {value!r}"])
    for cell in cells:
        missing = cell is None or math.isnan(cell)
        wanted = sign == "!=" if missing else SIGNS[sign](cell, value)
        assert bool(condition.holds(cell)) == wanted
        if not missing:  # a table holds texts
            assert bool(condition.holds(repr(cell))) == wanted


@given(st.text(min_size=1), st.text(min_size=1), st.sampled_from([*SIGNS]))
def test_texts_in_quotes_are_compared_as_python_compares_them(
    cell: str, value: str, sign: str
) -> None:
    import unicodedata

    one, other = (unicodedata.normalize("NFC", text) for text in (cell, value))
    (condition,) = parse_conditions(where=[f"x{sign}'{value}'"])
    assert bool(condition.holds(cell)) == SIGNS[sign](one, other)


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc"), min_size=1))
def test_alternatives_are_a_union_in_any_order(cells: list[str], values: list[str]) -> None:
    for order in (values, values[::-1]):
        (condition,) = parse_conditions([f"x={value}" for value in order])
        assert [cell for cell in cells if condition.holds(cell)] == [
            c for c in cells if c in values
        ]


@pytest.mark.parametrize(
    ("cell", "text", "met"),
    [
        (True, "x=true", True), (False, "x=true", False), (3, "x=3", True), (3.0, "x=3", True),
        (3, "x=3.5", False), ("3", "x=3", True), ("03", "x=3", False), (None, "x=", True),
        ("", "x=", True), (math.nan, "x=", True), ("a=b", "x=a=b", True), (0, "x=", False),
        ("valencia\u0300", "x=valenci\u00e0", True), ("Central", "x=central", False),
    ],
)  # fmt: skip
def test_a_value_of_only(cell: object, text: str, met: bool) -> None:
    (condition,) = parse_conditions([text])
    assert bool(condition.holds(cell)) == met


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("duration", "'duration' is no comparison. Write 'COLUMN OPERATOR VALUE'"),
        ("accent=x", "'accent=x' is no comparison. Write accent==x."),
        ("<5", "'<5' is no comparison"), ("", "'' is no comparison"),
        ("duration<", "compares with nothing"), ("1<duration<2", "has several comparisons"),
        ("duration===2", "no comparison"), ("a<>b", "no comparison"), ("duration =< 3", "no comparison"),
        ("language==klingon", "Whisper has no language 'klingon'"),
        ("__import__('os').system('x')", "no comparison"),
    ],
)  # fmt: skip
def test_what_is_no_comparison(text: str, message: str) -> None:
    with pytest.raises(UsageFault) as caught:
        parse_conditions(where=[text])
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["accent", "=x", "accent==x", "duration<=3", "x!=3", ""])
def test_what_is_no_value(text: str) -> None:
    with pytest.raises(UsageFault, match="is no COLUMN=VALUE"):
        parse_conditions([text])


@pytest.mark.parametrize(
    ("cell", "where", "met"),
    [
        (10**400, "n==x", False),
        (10**400, "n!=x", True),
        (10**400, "n==5", False),
        (10**400, f"n=='{10**400}'", True),
        (-(10**400), "n>'x'", False),
        (math.inf, "n=='inf'", True),
        (math.inf, "n!=5", True),
    ],
)
def test_numbers_without_a_float_are_compared_as_texts(cell: float, where: str, met: bool) -> None:
    (condition,) = parse_conditions(where=[where])
    assert bool(condition.holds(cell)) is met


def test_a_long_text_is_shortened_where_a_number_is_compared_with_it() -> None:
    wanted = Wanted(parse_conditions(where=["n<" + "9" * 5000]), "m.jsonl")
    with pytest.raises(UsageFault) as caught:
        wanted.lacks({"n": 1}, "ca", "asr")
    assert len(str(caught.value)) < 300


def test_lists_are_not_compared() -> None:
    wanted = Wanted(parse_conditions(["tags=x"]), "m.jsonl")
    with pytest.raises(UsageFault, match=r"'tags' of m.jsonl holds lists or objects"):
        wanted.lacks({"tags": ["x"]}, "ca", "asr")


# --- rows -----------------------------------------------------------------------------------------


def test_rows_of_a_manifest(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        {"accent": "central", "score": 1, "speaker": "s1"},
        {"accent": "balear", "score": 2.5, "speaker": "s2", "text": "bon dia"},
        {"accent": "balear", "source_lang": "de", "score": None},
        {"score": 7},
    )
    assert chosen(path, only=["accent=balear"])[0] == ["b", "c"]
    assert chosen(path, only=["accent=balear", "accent=central"])[0] == ["a", "b", "c"]
    assert chosen(path, "score>=2.5")[0] == ["b", "d"]
    assert chosen(path, "score != 1")[0] == ["b", "c", "d"]
    assert chosen(path, "accent!=balear")[0] == ["a", "d"]
    assert chosen(path, only=["accent="])[0] == ["d"]
    assert chosen(path, only=["language=German"])[0] == ["c"]
    assert chosen(path, "language!='cat'")[0] == ["c"]
    assert chosen(path, "text_length>4", only=["accent=balear"])[0] == ["b"]
    assert chosen(path, "text<c")[0] == ["b"]
    assert chosen(path, only=["speaker=s1", "speaker=s2"])[0] == ["a", "b"]
    assert chosen(path, only=["id=d"])[0] == ["d"]
    assert chosen(path, "score<3", only=["accent=balear"], language="ca")[0] == ["b"]


def test_durations_are_those_of_the_audio(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"duration": 1.004}, {}, {"offset": 0.5, "duration": 1.0})
    names, report = chosen(path, "duration<=1")
    assert names == ["a", "c"]  # of a the header tells 1.0 s
    assert report.reasons == {"not asked for": 1}
    long = clip(tmp_path / "long.wav", 40.0)
    with path.open("a") as file:
        file.write(json.dumps({"audio_filepath": long.name, "text": "x", "source_lang": "ca"}))
    assert chosen(path, "duration<1.5")[1].reasons == {
        "not asked for": 2
    }  # not longer than the window
    assert "has duration<0.1. duration holds numbers from 1 to 40" in refused(path, "duration<0.1")
    assert "holds numbers such as" in refused(path, "duration<short")


def test_rows_not_asked_for_are_apart_from_faulty_ones(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"set": "x"}, {"set": "y"}, {"set": "y", "text": 5}, {"set": "x"})
    (tmp_path / "d.wav").unlink()
    report = chosen(path, only=["set=x"])[1]
    assert report.reasons == {"not asked for": 2, "missing audio": 1}
    warnings = drop_warnings(report)
    assert "1 of 2 rows are dropped (1 missing audio)" in warnings[0]
    assert "2 of 4 rows are skipped (2 not asked for), and the others are used." in warnings[1]
    assert report.selected == ("set=x",)


@pytest.mark.parametrize(
    ("only", "where", "message"),
    [
        (["acent=x"], [], "no row of {} has 'acent'. Did you mean 'accent'? Known: audio_filepath, text"),
        (["accent=Balear"], [],
         "No row of {} has accent=Balear. Did you mean 'balear'? accent holds 'balear' in 2 rows, "
         "'central' in 1 row."),
        ([], ["score>9"], "No row of {} has score>9. score holds numbers from 1 to 2."),
        ([], ["accent<3"], "'accent' of {} holds texts such as 'central', and 3 is a number"),
        ([], ["score<x"], "'score' of {} holds numbers such as 1, and 'x' is a text"),
        (["empty=x"], [], "empty holds nothing in any row"),
        (["accent=central"], ["score>1"], "No row of {} is all that was asked for: 3 not asked for. Each "
         "of accent=central, score>1 is met by some row, and no row meets all."),
    ],
)  # fmt: skip
def test_what_no_row_has(tmp_path: Path, only: list[str], where: list[str], message: str) -> None:
    path = manifest(
        tmp_path, {"accent": "central", "score": 1, "empty": None}, {"accent": "balear", "score": 2},
        {"accent": "balear"},
    )  # fmt: skip
    assert message.format(path) in refused(path, *where, only=only)


def test_one_of_several_values_that_no_row_has_is_told(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"accent": "central"}, {"accent": "balear"})
    names, report = chosen(path, only=["accent=balear", "accent=centra"])
    assert names == ["b"]
    assert (
        drop_warnings(report)[0] == f"No row of {path} has accent=centra. Did you mean 'central'?"
    )


def test_texts_that_are_not_read_choose_no_rows(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"accent": "x"}, {"accent": "y"})
    assert chosen(path, only=["accent=y"], labelled=False)[0] == ["b"]
    assert "texts are not read here" in refused(path, "text_length>2", labelled=False)


# --- formats --------------------------------------------------------------------------------------


def tsv(path: Path, *rows: str) -> None:
    path.write_text("".join(row.replace(" | ", "\t") + "\n" for row in rows), encoding="utf-8")


def test_common_voice_and_covost(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    for name in "abc":
        clip(folder / "clips" / f"{name}.wav")
    tsv(
        folder / "train.tsv", "client_id | path | sentence | up_votes | accents",
        "s1 | a.wav | u | 2 | balear", "s2 | b.wav | dos | 10 | ", "s3 | c.wav | tres | 3 | central",
    )  # fmt: skip
    assert chosen(folder, only=["accents=balear"], split="train")[0] == ["a"]
    assert chosen(folder, "up_votes>2", split="train")[0] == ["b", "c"]
    assert chosen(folder, "accents!=balear", "client_id!=s3", split="train")[0] == ["b"]
    assert "Did you mean 'accents'?" in refused(folder, only=["accent=balear"], split="train")
    tsv(folder / "validated.tsv", "client_id | path | sentence | age", *(f"s | {n}.wav | x | {a}"
        for n, a in (("a", "teens"), ("b", "fifties"))))  # fmt: skip
    table = folder / "covost_v2.ca_en.tsv"
    tsv(table, "path | translation | split", "a.wav | one | train", "b.wav | two | train")
    assert chosen(table, only=["age=teens"], split="train")[0] == ["a"]
    assert chosen(table, "translation>='t'", split="train")[0] == ["b"]


def test_an_audio_folder_and_kaldi(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    for name in "ab":
        clip(folder / f"{name}.wav")
    (folder / "metadata.csv").write_text("file_name,text,room\na.wav,x,hall\nb.wav,y,car\n")
    assert chosen(folder, only=["room=car"], language="ca")[0] == ["b"]
    kaldi = tmp_path / "kaldi"
    kaldi.mkdir()
    texts = {
        "wav.scp": "".join(f"{n} {folder / n}.wav\n" for n in "ab"), "text": "a x\nb y\n",
        "utt2spk": "a s1\nb s2\n", "spk2gender": "s1 f\ns2 m\n", "utt2snr": "a 3.5\nb 20\n",
    }  # fmt: skip
    for name, text in texts.items():
        (kaldi / name).write_text(text)
    assert chosen(kaldi, only=["gender=f"], language="ca")[0] == ["a"]
    assert chosen(kaldi, "snr>10", language="ca")[0] == ["b"]
    assert "Did you mean 'gender'?" in refused(kaldi, only=["gendr=f"], language="ca")


def test_parquet_here_and_on_the_hub(tmp_path: Path, set_hub: Hub) -> None:
    features = {"audio": AUDIO, "text": "string", "gender": labels("f", "m"), "snr": "float32",
                "sentence": "string"}  # fmt: skip
    rows = [
        {"audio": audio(n), "text": f"t{n}", "gender": n % 2, "snr": 1.5 * n, "sentence": None}
        for n in range(4)
    ]
    (tmp_path / "x.parquet").write_bytes(table(rows, features))
    add_set(set_hub, "org/set", {"data/test-00000-of-00001.parquet": table(rows, features)})
    for path in (tmp_path / "x.parquet", Path("hub:org/set::test")):
        assert chosen(path, only=["gender=m"], language="ca")[0] == ["clip1", "clip3"]
        assert chosen(path, "snr<=1.5", language="ca")[0] == ["clip0", "clip1"]
        report = chosen(path, "text!=t0", language="ca")[1]
        assert [row.text for row in report.utterances] == ["t1", "t2", "t3"]
        assert "Did you mean 'gender'?" in refused(path, only=["gendr=m"], language="ca")
        assert "'audio' holds audio, which is not compared" in refused(
            path, only=["audio=x"], language="ca"
        )
    add_set(set_hub, "google/fleurs", fleurs_files())
    found, _ = chosen(Path("hub:google/fleurs:ca_es:test"), "raw_transcription=='Fa fred.'")
    assert found == ["3", "3#2"]


def test_a_column_of_structs_is_not_compared(tmp_path: Path) -> None:
    sound = {"bytes": clip(tmp_path / "a.wav").read_bytes(), "path": "a.wav"}
    rows = [{"audio": sound, "text": "x", "about": {"accent": "y"}, "tags": ["u"]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    for name in ("about", "tags"):
        said = refused(tmp_path / "x.parquet", only=[f"{name}=y"], language="ca")
        assert f"{name!r} of {tmp_path / 'x.parquet'} holds lists or objects" in said


def test_rows_are_the_same_for_hours_of_those_asked_for(tmp_path: Path) -> None:
    """A condition that all of a subset's rows meet takes the subset of the reduced manifest."""
    path = manifest(tmp_path, *({"set": "xy"[n % 2]} for n in range(10)))
    reduced = tmp_path / "reduced.jsonl"
    lines = path.read_text().splitlines()
    reduced.write_text("\n".join(line for line in lines if '"set": "x"' in line))
    found = chosen(path, only=["set=x"], hours=10 / 3600)[0]
    assert found == chosen(reduced, hours=10 / 3600)[0]
    assert 1 < len(found) < 5


def test_several_data_sets_are_chosen_from_one_by_one(tmp_path: Path) -> None:
    sets = [manifest(tmp_path / name, {"set": "x"}, {"set": name}) for name in "yz"]
    report = data(sets, conditions=parse_conditions(["set=x"]))
    assert len(report.utterances) == 2
    with pytest.raises(LorsmergeError, match=r"No row of .*z/m.jsonl has set=y"):
        data(sets, conditions=parse_conditions(["set=y"]))
