"""Results go to stdout, everything else to stderr, and nothing is cut on its way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorsmerge_cli import app

MERGE = "lorsmerge merge base.safetensors ca.delta de.delta --svp 0.5 --mp 0.5 "
RESULTS = {
    "delta": "lorsmerge delta base/ ca.safetensors -o x.delta",
    "prune": "lorsmerge prune ca.delta -o x.delta --svp 0.5 --mp 0.5",
    "merge": MERGE,
    "merge dry run": MERGE + "--dry-run",
    "merge into a folder": "lorsmerge merge base ca.delta --scale 0",
    "inspect a checkpoint": "lorsmerge inspect base/",
    "inspect deltas": "lorsmerge inspect ca.delta de.delta",
}
ODD_NAMES = [
    "with space.delta",
    "[bold]ca.delta",
    "[link=x].delta",
    "català-日本語.delta",
    ":smile:.delta",
    "a:b=c.delta",
]


@pytest.mark.parametrize("name", RESULTS)
def test_json_is_one_document_and_all_of_stdout(tiny: Path, succeed: Callable, name: str) -> None:
    ended = succeed(RESULTS[name] + " --json")
    document = json.loads(ended.out)
    assert isinstance(document, dict)
    assert ended.err == ""


@pytest.mark.parametrize("name", RESULTS)
def test_json_holds_no_nan_that_other_readers_refuse(
    tiny: Path, succeed: Callable, name: str
) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(succeed(RESULTS[name] + " --json").out, parse_constant=refuse)


def test_json_is_printed_even_when_quiet(tiny: Path, succeed: Callable) -> None:
    assert json.loads(succeed(MERGE + "--json --quiet").out)["output"] == "merged.safetensors"


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_goes_to_stdout_and_quiet_silences_it(
    tiny: Path, succeed: Callable, name: str
) -> None:
    quiet = succeed(RESULTS[name] + " --quiet")
    assert (quiet.out, quiet.err) == ("", "")
    loud = succeed(RESULTS[name] + ("" if "inspect" in name else " --force"))
    assert loud.out != ""
    assert loud.err == ""


def test_warnings_go_to_stderr_even_when_quiet(tiny: Path, succeed: Callable) -> None:
    shutil.copy("ca.delta", "again.delta")
    ended = succeed("lorsmerge merge base.safetensors ca.delta again.delta --quiet --json")
    assert "warning: again.delta is the same delta" in ended.err
    json.loads(ended.out)


@pytest.mark.parametrize("option", ["--json", "--quiet", ""])
def test_an_error_goes_to_stderr(tiny: Path, shell: Callable, option: str) -> None:
    ended = shell(f"lorsmerge inspect gone.delta {option}")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: gone.delta: no such file")


def test_a_merge_without_a_pruner_speaks_of_none(tiny: Path, succeed: Callable) -> None:
    for method in ("ta", "ties"):
        said = succeed(
            f"lorsmerge merge base ca.delta de.delta --method {method} -o m --dry-run"
        ).out
        assert "10 tensors merged, 1 copied" in said
        assert "pruned" not in said


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    tiny: Path, succeed: Callable, contents: Callable
) -> None:
    before = contents(tiny)
    ended = succeed(MERGE + "--dry-run --save-recipe r.toml")
    assert contents(tiny) == before
    for said in ("ca.delta", "0.5", "4 tensors pruned (", "% of the parameters)", "6 merged unpruned", "1 copied",
                 "would write merged.safetensors", "2.5 kB", "MB of working memory"):  # fmt: skip
        assert said in ended.out
    plan = json.loads(succeed(MERGE + "--dry-run --json").out)
    assert plan["tensors"] == {"pruned": 4, "unpruned": 6, "copied": 1}
    assert 0.5 < plan["pruned_share_of_parameters"] < 1
    assert plan["output_bytes"] > 0
    assert plan["memory_bytes"] > 0
    assert plan["recipe"]["method"] == "lors"
    assert contents(tiny) == before


def test_less_than_a_half_pruned_is_a_warning_of_merge_and_prune(
    tiny: Path, succeed: Callable
) -> None:
    few = " --exclude '*fc*' --json"
    for command in (MERGE, "lorsmerge prune ca.delta -o few.delta --svp 0.5"):
        ended = succeed(command + few)
        share = json.loads(ended.out)["pruned_share_of_parameters"]
        assert share < 0.5
        assert f"warning: {share:.0%} of the parameters are pruned" in ended.err
    assert succeed("lorsmerge merge base.safetensors ca.delta -o plain.safetensors").err == ""


def test_a_scale_of_zero_is_honoured(tiny: Path, succeed: Callable) -> None:
    document = json.loads(succeed("lorsmerge merge base/ ca.delta --scale 0 --json").out)
    assert document["scale_total"] == 0
    merged = Path("merged/model.safetensors").read_bytes()
    base = Path("base/model.safetensors").read_bytes()
    tail = 2000  # the weights are at the end, the headers differ
    assert merged[-tail:] == base[-tail:]


def test_a_scale_of_zero_is_told(tiny: Path, succeed: Callable) -> None:
    assert "which the merge equals" in succeed("lorsmerge merge base/ ca.delta --scale 0").out
    assert "which the merge equals" not in succeed("lorsmerge merge base/ ca.delta -o other").out


def test_the_error_of_rounding_is_shown_where_there_is_one(tiny: Path, succeed: Callable) -> None:
    line = "lorsmerge prune ca.delta -o p.delta --svp 0.1 --mp 0.2 --force"
    rounded = json.loads(succeed(f"{line} --dtype bfloat16 --json").out)
    assert 1e-4 < rounded["all"]["rounding_error"] < 1e-2
    assert all(0 < kind["rounding_error"] < 1e-2 for kind in rounded["kinds"].values())
    assert json.loads(succeed(f"{line} --json").out)["all"]["rounding_error"] == 0
    assert "rounding error" in succeed(f"{line} --dtype bfloat16").out
    assert "rounding error" not in succeed(line).out


def test_inspect_names_the_tensors_that_are_not_finite(tiny: Path, succeed: Callable) -> None:
    with safe_open("ca.delta", framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file("ca.delta")
    bad = sorted(tensors)[1]
    tensors[bad].view(-1)[0] = float("nan")
    save_file(tensors, "bad.delta", metadata=metadata)
    ended = succeed("lorsmerge inspect bad.delta de.delta --json")
    assert f"warning: bad.delta: 1 of {len(tensors)} tensors hold a NaN" in ended.err
    document = json.loads(ended.out, parse_constant=lambda constant: pytest.fail(constant))
    assert document["files"][0]["all"]["non_finite"] == [bad]
    assert document["files"][1]["all"]["non_finite"] == []
    shown = succeed("lorsmerge inspect bad.delta de.delta")
    assert f"NaN or infinity in {bad}" in shown.out
    assert "nan" not in shown.out


def test_version(shell: Callable) -> None:
    from lorsmerge_cli import __version__

    ended = shell("lorsmerge --version")
    assert (ended.code, ended.out, ended.err) == (0, f"lorsmerge {__version__}\n", "")


def test_debug_shows_where_an_error_came_from(tiny: Path, shell: Callable) -> None:
    ended = shell("lorsmerge inspect gone.delta --debug")
    assert (ended.code, ended.out) == (1, "")
    assert "Traceback (most recent call last)" in ended.err
    assert "error: gone.delta: no such file" in ended.err


def test_debug_shows_where_a_bug_came_from(
    tiny: Path, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise ZeroDivisionError("one")

    monkeypatch.setattr("lorsmerge_cli.operations.merge.plan_merge", fail)
    plain = shell(MERGE)
    assert plain.code == 1
    assert "This is a bug in lorsmerge" in plain.err
    assert "Traceback" not in plain.err
    assert "in fail" in shell(MERGE + "--debug").err


def test_a_signal_that_an_import_turns_into_another_error_is_no_bug(
    tiny: Path, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NumPy's and SciPy's modules do, which a KeyboardInterrupt leaves half loaded."""

    def fail(*arguments: object, **settings: object) -> None:
        with suppress(KeyboardInterrupt):
            app._terminate(signal.SIGTERM, None)
        raise RecursionError("maximum recursion depth exceeded")

    with monkeypatch.context() as patch:
        patch.setattr("lorsmerge_cli.operations.merge.plan_merge", fail)
        ended = shell(MERGE)
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.strip() == "error: Interrupted; nothing was written."
    assert shell(MERGE).code == 0  # the signal was the earlier command's


def test_a_file_that_cannot_be_opened_is_no_bug(
    tiny: Path, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied", "rows.jsonl")

    monkeypatch.setattr("lorsmerge_cli.operations.merge.plan_merge", fail)
    ended = shell(MERGE)
    assert ended.code == 1
    assert (
        ended.err == "error: rows.jsonl: Permission denied. Check the path and its permissions.\n"
    )


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_file_names_are_printed_as_they_are(
    tiny: Path, succeed: Callable, shell: Callable, name: str
) -> None:
    Path("ca.delta").rename(name)
    line = f"lorsmerge merge base.safetensors '{name}' -o '{name}.safetensors'"
    done = succeed(line)
    assert name in done.out
    assert f"{name}.safetensors" in done.out
    document = json.loads(succeed(line + " --json --force").out)
    assert document["recipe"]["deltas"][0]["path"] == name
    failed = shell(line)
    assert failed.code == 1
    assert f"error: {name}.safetensors exists" in failed.err
    assert name in succeed(f"lorsmerge inspect '{name}'").out
    assert name in succeed(f"lorsmerge inspect '{name}' de.delta").out


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_file_names_survive_a_recipe(tiny: Path, succeed: Callable, name: str) -> None:
    Path("ca.delta").rename(name)
    succeed(f"lorsmerge merge base/ '{name}' -o first --save-recipe r.toml")
    succeed("lorsmerge merge --recipe r.toml -o second")
    succeed("lorsmerge merge --recipe second/lorsmerge.json -o third")
    assert (
        len({Path(d, "model.safetensors").read_bytes() for d in ("first", "second", "third")}) == 1
    )


def test_a_strangers_delta_does_not_steer_the_terminal(tiny: Path, succeed: Callable) -> None:
    with safe_open("ca.delta", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    metadata["lorsmerge.history"] = json.dumps(["lorsmerge \x1b]0;owned\x07\x1b[2J"])
    Path("ca.delta").unlink()
    save_file(tensors, "ca.delta", metadata=metadata)
    assert "\x1b" not in succeed("lorsmerge inspect ca.delta").out


@pytest.mark.parametrize("columns", [20, 40])
def test_a_narrow_pipe_cuts_no_cell(
    tiny: Path, succeed: Callable, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    wide = [succeed(RESULTS[name] + " --force").out for name in ("prune", "merge")]
    wide += [succeed(RESULTS[name]).out for name in RESULTS if "inspect" in name]
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = [succeed(RESULTS[name] + " --force").out for name in ("prune", "merge")]
    narrow += [succeed(RESULTS[name]).out for name in RESULTS if "inspect" in name]
    assert narrow == wide
    assert "…" not in "".join(narrow)


def test_a_narrow_pipe_folds_no_message(
    tiny: Path, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert len(shell("lorsmerge inspect gone.delta").err.splitlines()) == 1


def test_tables_carry_no_colour_into_a_pipe(tiny: Path, succeed: Callable) -> None:
    assert "\x1b" not in succeed(RESULTS["inspect deltas"]).out


# --- real processes -----------------------------------------------------------------------------


def test_the_streams_of_a_real_process(tiny: Path, process: Callable) -> None:
    shutil.copy("ca.delta", "again.delta")
    ended = process("lorsmerge merge base.safetensors ca.delta again.delta --json")
    assert ended.code == 0
    assert json.loads(ended.out)["recipe"]["method"] == "ta"
    assert ended.err.startswith("warning: ")


@pytest.mark.parametrize("reader", ["head -1", "true"])
@pytest.mark.parametrize("option", ["", "--json"])
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_reader_that_goes_away_is_no_error(tiny: Path, reader: str, option: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -m lorsmerge_cli inspect base/ ca.delta {option} | {reader}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == (reader == "head -1")


@pytest.mark.skipif(sys.platform == "win32", reason="encodings of POSIX")
def test_a_name_that_the_terminal_cannot_show_is_no_crash(tiny: Path, process: Callable) -> None:
    Path("ca.delta").rename("català.delta")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ended = process("lorsmerge merge base.safetensors català.delta", env=environment)
    assert ended.code == 0, ended.err
    assert "lost to rounding" in ended.out


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")
def test_a_narrow_terminal_folds_and_cuts_nothing(tiny: Path) -> None:
    import pty

    long = "a-rather-long-name-of-a-delta.delta"
    Path("ca.delta").rename(long)
    main, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "lorsmerge_cli", "merge", "base.safetensors", long],
        stdout=terminal, stderr=terminal, env=os.environ | {"COLUMNS": "40", "TERM": "xterm"},
    ) as running:  # fmt: skip
        os.close(terminal)
        shown = b""
        while True:
            try:
                part = os.read(main, 4096)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            shown += part
        assert running.wait(60) == 0
    os.close(main)
    text = shown.decode()
    assert "…" not in text
    joined = "".join(line.split("  ")[0].strip() for line in text.splitlines())
    assert long in joined


def test_a_merge_shows_what_its_deltas_were_pruned_by(tiny: Path, succeed: Callable) -> None:
    succeed("lorsmerge prune ca.delta -o x.delta --svp 0.5 --mp 0.25")
    (row,) = [
        line.split()
        for line in succeed("lorsmerge merge base.safetensors x.delta").out.splitlines()
        if line.strip().startswith("x.delta")
    ]
    assert row[1:3] == ["(0.5)", "(0.25)"]
    assert len(row) == 5  # name, ratios, lambda and norm; nothing is pruned here


def test_a_plan_names_a_source_of_the_norm_that_is_missing(tiny: Path, shell: Callable) -> None:
    ended = shell("lorsmerge merge base.safetensors ca.delta --step-norm-of nowhere.toml -n")
    assert ended.code == 1
    assert "nowhere.toml: no such file" in ended.err


def test_a_merge_tells_what_lambda_is_multiplied_by(tiny: Path, succeed: Callable) -> None:
    succeed("lorsmerge merge base.safetensors ca.delta -o other.safetensors --scale 0.1")
    ended = succeed(
        "lorsmerge merge base.safetensors ca.delta --step-norm-of other.safetensors --scale 0.2"
    )
    assert "lambda is multiplied by 0.5 to reach the step norm of other.safetensors" in ended.err
