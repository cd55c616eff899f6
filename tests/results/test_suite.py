"""Suites: what their files may say, and what is said of those that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorsmerge_cli.errors import Faults, LorsmergeError, UnreadableFile
from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.results.records import comparable_group
from lorsmerge_cli.results.suite import (
    check_suite_data,
    parse_suite_record,
    published_for,
    published_in_words,
    read_suite,
)

EXAMPLES = Path(__file__).parents[2] / "examples" / "suites"
GOOD = """
about = "two sets"
task = "asr"
normalise = "leaderboard"
retention = ["b"]

[sets.a]
data = "a.jsonl"
language = "ca"

[sets.b]
data = "hub:org/set:de_de:test"
language = "German"
normalise = "raw"
hours = 1

[[published]]
model = "small"
set = "a"
metric = "WER"
score = 12.5
normalise = "leaderboard"
source = "a page"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "two.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_with_the_defaults_of_all_sets(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, GOOD))
    a, b = suite.sets
    assert (a.name, a.path, a.reading) == ("a", tmp_path / "a.jsonl", {"language": "ca", "task": "asr"})  # fmt: skip
    assert (a.normalise, b.normalise) == ("leaderboard", "raw")
    assert str(b.path) == "hub:org/set:de_de:test"  # no path: not below the file's folder
    assert b.reading == {"language": "de", "task": "asr", "hours": 1.0}
    assert suite.record.name == "two"
    assert suite.record.retention == ("b",)
    assert suite.record.published[0].key == ("a", "ca", "asr")
    assert parse_suite_record(suite.record.to_dict()) == suite.record


def test_a_digest_is_of_what_is_said_of_the_sets_alone(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        return read_suite(write(tmp_path, text)).record.digest

    assert digest(GOOD) == digest("# a remark\n" + GOOD.replace("12.5", "12.6"))
    assert digest(GOOD) != digest(GOOD.replace("hours = 1", "hours = 2"))
    assert digest(GOOD) != digest(GOOD.replace('normalise = "raw"', ""))


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [
        ('language = "ca"', 'langauge = "ca"', "sets.a has no key 'langauge'. Did you mean 'language'?"),
        ("about =", "abuot =", "there is no key 'abuot'. Did you mean 'about'?"),
        ('language = "ca"', 'language = "klingon"', "sets.a.language is 'klingon': Whisper has no language"),
        ('language = "ca"', "language = 3", "sets.a.language is 3, and a text is needed"),
        ('task = "asr"', 'task = "ars"', "sets.a.task is 'ars'"),
        ('normalise = "raw"', 'normalise = "row"', "sets.b.normalise is 'row': it is none that is known. Did you mean 'raw'?"),
        ("hours = 1", "hours = true", "sets.b.hours is True, and a number above 0 is needed"),
        ("hours = 1", "hours = -1", "sets.b.hours is -1"),
        ("hours = 1", "hours = nan", "sets.b.hours is nan"),
        ('data = "a.jsonl"', "", "sets.a.data is missing. Give a path, or hub:"),
        ('data = "a.jsonl"', 'data = ["a"]', "sets.a.data is ['a'], and a text is needed"),
        ("hub:org/set:de_de:test", "hub:org", "sets.b.data is 'hub:org': hub:org names no data set on the Hub"),
        ('retention = ["b"]', 'retention = ["c"]', "retention names no set of the file: 'c'"),
        ('retention = ["b"]', 'retention = "b"', "retention is no list of names"),
        ('set = "a"', 'set = "aa"', "published[1].set is 'aa', no set of the file. Did you mean 'a'?"),
        ('metric = "WER"', 'metric = "wer"', "published[1].metric is 'wer'."),
        ("score = 12.5", 'score = "12.5"', "published[1].score is '12.5', and a number is needed"),
        ("score = 12.5", "score = inf", "published[1].score is inf"),
        ('source = "a page"', "", "published[1].source is missing"),
        ('normalise = "leaderboard"\nsource', "source", "published[1].normalise is missing, and error rates differ by it"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_file_set_and_key(
    tmp_path: Path, good: str, bad: str, told: str
) -> None:
    path = write(tmp_path, GOOD.replace(good, bad, 1))
    with pytest.raises(LorsmergeError) as caught:
        read_suite(path)
    assert f"{path}: {told}" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sets = 3",
        "[sets]",
        "[[sets]]\na = 1",
        "[sets]\na = 3",
        "published = 1",
        "retention = 5",
        "a = ",
        "sets.a",
    ],
)
def test_what_is_no_suite_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(LorsmergeError, match=r"two\.toml"):
        read_suite(write(tmp_path, text))


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(Faults) as caught:
        read_suite(write(tmp_path, GOOD.replace("hours", "huors").replace("12.5", "true")))
    assert len(caught.value.errors) == 2


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no suite"):
        read_suite(tmp_path / "none.toml")


def test_a_normalisation_of_all_sets_is_the_runs(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, GOOD.replace('normalise = "raw"', "")))
    assert suite.scoring(Scoring(samples=5), ["a", "b"]) == Scoring("leaderboard", 5)
    apart = suite.scoring(Scoring(), ["a", "b", "other"])
    assert [apart.of(name).normalisation for name in ("a", "b", "other")] == [
        "leaderboard", "leaderboard", "auto",
    ]  # fmt: skip
    assert {comparable_group(name, "ca", "st", apart) for name in ("a", "other")} == {"st"}


def test_figures_of_another_normalisation_are_told_apart(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path, GOOD))
    scored = {("a", "ca", "asr"): "WER"}
    alike, unlike = published_for(suite.record.published, scored, Scoring("leaderboard"))
    assert [figure.score for figure in alike] == [12.5]
    assert not unlike
    alike, unlike = published_for(suite.record.published, scored, Scoring("raw"))
    assert not alike
    assert published_in_words(alike, unlike) == [
        "small (published) by normalisation leaderboard, so in no column: a ca WER 12.5 (a page)"
    ]
    assert published_for(suite.record.published, {("a", "ca", "asr"): "CER"}, Scoring()) == ((), ())


def test_sets_that_are_not_there_are_told_before_anything_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "cv"
    (folder / "clips").mkdir(parents=True)
    (folder / "test.tsv").write_text("path\tsentence\n")
    text = '[sets.a]\ndata = "cv"\nsplit = "train"\n[sets.b]\ndata = "none.jsonl"\n'
    suite = read_suite(write(tmp_path, text))
    first, second = check_suite_data(suite, "test")
    assert f"two.toml: sets.a.data: {folder} has no split 'train'." in first.what
    assert f"two.toml: sets.b.data: There is no data set {tmp_path / 'none.jsonl'}." in second.what


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_suites_that_come_with_lorsmerge_are_suites(path: Path) -> None:
    suite = read_suite(path)
    assert all(each.language and each.task and each.split for each in suite.sets)
    scoring = suite.scoring(Scoring(), [each.name for each in suite.sets])
    for figure in suite.record.published:
        assert figure.comparable(scoring) or figure.normalise == "unknown"


def test_fleurs_has_a_set_for_each_language() -> None:
    suite = read_suite(EXAMPLES / "fleurs-21.toml")
    assert len({each.language for each in suite.sets}) == len(suite.sets) == 21


def test_the_suite_of_the_page_is_one(tmp_path: Path) -> None:
    page = (EXAMPLES.parents[1] / "docs" / "scores.md").read_text(encoding="utf-8")
    suite = read_suite(write(tmp_path, page.split("```toml\n")[1].split("```")[0]))
    assert [each.name for each in suite.sets] == ["fleurs_ca", "calls"]
    assert suite.record.published[0].comparable(suite.scoring(Scoring(), suite.record.sets))
