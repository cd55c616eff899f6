"""Controls that `report` finds by what eval recorded: deltas, method and step norm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_calls import cells, table
from results_files import delta, merge, record, write_results

from lorsmerge_cli import report as run
from lorsmerge_cli.operations.report.numbers import MINUS

ASR = [("ca", "ca", "asr"), ("de", "de", "asr")]
CA, DE = delta("ca_asr"), delta("de_asr")
TITLE = "Against task arithmetic of the same step norm"


def made(method: str, step: float | None, *deltas: dict[str, Any], **more: Any) -> dict[str, Any]:
    norm = {} if step is None else {"step_norm": step}
    return merge(method, *(deltas or (CA, DE))) | norm | more


def results(folder: Path, name: str, made_from: dict[str, Any], wrong: float = 0.2) -> Path:
    path = folder / f"{name.replace(':', '_')}.json"
    return write_results(path, [record(name, cell, wrong) for cell in ASR], {name: made_from})


def files(folder: Path, systems: dict[str, dict[str, Any]]) -> list[Path]:
    return [
        results(folder, name, made_from, 0.1 + 0.02 * number)
        for number, (name, made_from) in enumerate({"pretrained": {}, **systems}.items())
    ]


def roles(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())["roles"]
    return found


def test_every_method_stands_above_its_control(tmp_path: Path) -> None:
    found = run(
        files(tmp_path, {
            "ta": made("ta", 3.0), "ties": made("ties", 1.0), "short": made("ta", 1.00001),
            "mine": made("tsv_m", 2.0), "mine-control": made("ta", 2.0),
        }),
        tmp_path / "out",
    )  # fmt: skip
    assert [(label, indented) for label, indented, _ in table(found, "scores").rows] == [
        ("pretrained", False), ("ta", False), ("ties", False), ("TA, same norm as ties", True),
        ("mine", False), ("TA, same norm as mine", True),
    ]  # fmt: skip
    assert roles(tmp_path / "out")["controls"] == {"ties": "short", "mine": "mine-control"}
    drawn = table(found, "controls")
    assert drawn.title == TITLE
    assert [label for label, _, _ in drawn.rows] == ["ties", "mine"]
    row = cells(found, "controls")["ties"]
    merge_score, control, difference = (
        row[head, "WER % ↓"].text for head in ("merge", "control", "difference")
    )
    assert difference.startswith(f"{float(merge_score) - float(control):+.2f}".replace("-", MINUS))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Indented below a merge: its control" in text


@pytest.mark.parametrize(
    "control",
    {
        "another step": made("ta", 1.01),
        "no step norm": made("ta", None),
        "another base": made("ta", 1.0, base="1"),
        "other deltas": made("ta", 1.0, CA, delta("fr_asr")),
        "fewer deltas": made("ta", 1.0, CA),
        "no task arithmetic": made("tsv_m", 1.0),
        "unknown": {},
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_no_control(tmp_path: Path, control: tuple[str, dict[str, Any]]) -> None:
    found = run(
        files(tmp_path, {"ta": made("ta", 3.0), "ties": made("ties", 1.0), "x": control[1]}),
        tmp_path / "out",
    )
    assert roles(tmp_path / "out")["controls"] == {}
    assert "controls" not in {table.name for table in found.tables}


@pytest.mark.parametrize("method", ["ta", "wa"])
def test_a_sum_has_no_control_but_itself(tmp_path: Path, method: str) -> None:
    run(
        files(tmp_path, {"x": made(method, 1.0), "y": made("ta", 1.0), "z": made("ta", 3.0)}),
        tmp_path / "out",
    )
    assert roles(tmp_path / "out")["controls"] == {}


def test_one_control_of_several_merges(tmp_path: Path) -> None:
    found = run(
        files(tmp_path, {
            "ta": made("ta", 3.0), "ties": made("ties", 1.0), "iso": made("iso_c", 1.0),
            "c": made("ta", 1.0),
        }),
        tmp_path / "out",
    )  # fmt: skip
    labels = [label for label, _, _ in table(found, "scores").rows]
    assert labels == ["pretrained", "ta", "ties", "iso", "TA, same norm as ties, iso"]
    assert [label for label, _, _ in table(found, "controls").rows] == ["ties", "iso"]


def test_the_system_compared_with_keeps_its_name_and_place(tmp_path: Path) -> None:
    """All merges of one step norm: the plain one is the baseline and the control of all others."""
    found = run(
        files(tmp_path, {"ta": made("ta", 1.0), "ties": made("ties", 1.0)}), tmp_path / "out"
    )
    assert [(label, indented) for label, indented, _ in table(found, "scores").rows] == [
        ("pretrained", False), ("ta", False), ("ties", False),
    ]  # fmt: skip
    assert roles(tmp_path / "out")["against"] == "ta"
    assert [label for label, _, _ in table(found, "controls").rows] == ["ties"]


def test_a_control_is_not_what_all_are_compared_with(tmp_path: Path) -> None:
    systems = {"ties": made("ties", 1.0), "ties-control": made("ta", 1.0), "plain": made("ta", 3.0)}
    run(files(tmp_path, systems), tmp_path / "out")
    assert roles(tmp_path / "out")["against"] == "plain"


def test_unless_it_is_the_only_one(tmp_path: Path) -> None:
    found = run(
        files(tmp_path, {"ties": made("ties", 1.0), "ties-control": made("ta", 1.0)}),
        tmp_path / "out",
    )
    assert roles(tmp_path / "out")["against"] == "ties-control"
    assert [label for label, _, _ in table(found, "controls").rows] == ["ties"]


def test_names_come_first(tmp_path: Path) -> None:
    systems = {
        "ta": made("ta", 3.0), "ties": made("ties", 1.0), "other": made("ta", 1.0),
        "ta_as_ties": made("ta", 1.2), "given": made("ta", 1.4), "iso": made("iso_c", 1.0),
    }  # fmt: skip
    written = files(tmp_path, systems)
    found = run(written, tmp_path / "out", controls={"iso": "given"})
    assert roles(tmp_path / "out")["controls"] == {"ties": "ta_as_ties", "iso": "given"}
    labels = [label for label, _, _ in table(found, "scores").rows]
    assert labels == ["pretrained", "ta", "ties", "ta_as_ties", "other", "iso", "given"]


def test_runs_are_paired(tmp_path: Path) -> None:
    """Each seed has deltas of its own; a control of one of them is none of the system's."""
    systems = {}
    for seed in (0, 1):
        own = [each | {"fingerprint": f"{each['fingerprint']}{seed}"} for each in (CA, DE)]
        systems[f"ties:seed{seed}"] = made("ties", 1.0 + seed, *own)
        systems[f"c:seed{seed}"] = made("ta", 1.0 + seed, *(d | {"scale": 0.1 * seed} for d in own))
    written = files(tmp_path, {"ta": made("ta", 9.0), **systems})
    run(written, tmp_path / "out")
    assert roles(tmp_path / "out")["controls"] == {"ties": "c"}
    run([path for path in written if path.name != "c_seed1.json"], tmp_path / "fewer")
    assert roles(tmp_path / "fewer")["controls"] == {}


def test_deltas_pruned_into_files_of_their_own(tmp_path: Path) -> None:
    """Their fingerprints are not those of the deltas that the control adds up."""
    pruned = [each | {"fingerprint": f"p{each['fingerprint']}", "svp": 0.1} for each in (CA, DE)]
    systems = {"ta": made("ta", 3.0), "x": made("svp", 1.0, *pruned), "y": made("ta", 1.0)}
    run(files(tmp_path, systems), tmp_path / "out")
    assert roles(tmp_path / "out")["controls"] == {"x": "y"}


def test_a_method_of_another_version(tmp_path: Path) -> None:
    systems = {"ta": made("ta", 3.0), "x": made("from_tomorrow", 1.0), "y": made("ta", 1.0)}
    run(files(tmp_path, systems), tmp_path / "out")
    assert roles(tmp_path / "out")["controls"] == {"x": "y"}
