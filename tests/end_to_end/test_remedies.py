"""What a message tells the user to run, run by bash as it is pasted, whatever letters names have."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands_ended import Ended, Shell
from hub_server import Hub
from safetensors.torch import load_file, save_file
from speech_models import make_whisper

from lorsmerge_cli import console
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.data.audio import audio_seconds
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.deltas.task_vector import check_vector, open_task_vector
from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.operations.export import export
from lorsmerge_cli.operations.push.source import find_source
from lorsmerge_cli.quoting import command
from lorsmerge_cli.usage import check_weights_path

NAMES = ["plain", "two words", "it's", '"quoted"', "-dash", "--output", "$HOME", "`touch owned`",
         "a;b&c|d", "tab\there", "two\nlines", "back\\slash", "näme", "*", "#x", "~", "!x", "a\u202eb",
         "mark-" + "long" * 50]  # fmt: skip
EVERY_NAME = pytest.mark.parametrize("name", NAMES)
PRINT_WORDS = "import json, sys; print(json.dumps(sys.argv))"


@pytest.fixture
def pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Run a line by bash, where other programs print their arguments: those, or lorsmerge's exit code."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("hf", "ffmpeg", "wav-copy"):
        (programs / name).write_text(f"#!{sys.executable}\n{PRINT_WORDS}\n")
    for name, module in (("python", ""), ("lorsmerge", "-m lorsmerge_cli")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
    for program in programs.iterdir():
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(line: str) -> list[str]:
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, encoding="utf-8", check=False,
            env=os.environ | {"PATH": path, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stderr)
        assert not Path("owned").exists()
        words: list[str] = json.loads(done.stdout) if done.stdout.startswith("[") else []
        return words[1:]

    return run


def backticked(message: str, beginning: str) -> str:
    """The command between backticks that begins with some words; names may hold backticks as well."""
    found = re.search(rf"`({re.escape(beginning)}.*)`(?=[.,;]| \w)", message, re.DOTALL)
    assert found is not None, message
    return found[1]


@EVERY_NAME
def test_any_word_arrives_as_it_is(pasted: Callable[[str], list[str]], name: str) -> None:
    assert pasted(console.shown(command("hf", name, Path(name)))) == [
        name, f"./{name}" if name.startswith("-") else name,
    ]  # fmt: skip


def test_a_name_that_is_not_utf_8(pasted: Callable[[str], list[str]]) -> None:
    name = os.fsdecode(b"caf\xe9")
    Path(name).write_text("there")
    pasted(console.shown(f"cat {command(Path(name))} > /dev/null"))


def message_of(work: Callable[[], object]) -> str:
    """The error that a piece of work ends in, as it is printed."""
    with pytest.raises(LorsmergeError) as caught:
        work()
    return console.shown(str(caught.value))


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, and tuned.safetensors as torch.compile names its tensors."""
    folder = tmp_path_factory.mktemp("wrapped")
    make_whisper(folder / "base")
    state = load_file(folder / "base" / "model.safetensors")
    renamed = {f"_orig_mod.{key}": value + 0.01 for key, value in state.items()}
    save_file(renamed, folder / "tuned.safetensors")
    return folder


@pytest.mark.parametrize("name", ["two words", "it's", "-dash", "`touch owned`", "two\nlines"])
def test_the_delta_of_a_wrapped_model(
    wrapped: Path, pasted: Callable[[str], list[str]], name: str
) -> None:
    base, tuned = Path(f"{name}.base"), Path(f"{name}.safetensors")
    shutil.copytree(wrapped / "base", base)
    shutil.copy(wrapped / "tuned.safetensors", tuned)
    checkpoint = Checkpoint(base)
    (fault,) = check_vector(checkpoint, open_task_vector(tuned, checkpoint))
    pasted(backticked(console.shown(str(fault)), "lorsmerge delta"))
    assert Path(f"{name}.delta").is_file()


@EVERY_NAME
def test_the_conversion_of_audio(pasted: Callable[[str], list[str]], name: str) -> None:
    Path(f"{name}.mkv").write_text("no sound")
    line = backticked(message_of(lambda: audio_seconds(AudioFile(Path(f"{name}.mkv")))), "ffmpeg")
    option, old, new = pasted(line)
    assert option == "-i"
    assert Path(old).is_file()
    assert not old.startswith("-")
    assert new == old.removesuffix(".mkv") + ".flac"


@pytest.mark.parametrize("name", [name for name in NAMES if len(name.split()) == 1])
def test_the_recording_in_an_archive(pasted: Callable[[str], list[str]], name: str) -> None:
    Path("kaldi").mkdir()
    Path("kaldi/text").write_text("utt bon dia\n")
    Path("kaldi/utt2spk").write_text("utt s\n")
    Path("kaldi/segments").write_text(f"utt {name} 0 1\n")
    Path("kaldi/wav.scp").write_text(f"{name} -{name}.ark:17\n")
    said = message_of(lambda: load_data([Path("kaldi")], language="ca", max_seconds=2.0))
    source, target = pasted(backticked(said, "wav-copy"))
    assert source == f"./-{name}.ark:17"
    assert target == (f"./{name}.wav" if name.startswith("-") else f"{name}.wav")


@EVERY_NAME
def test_the_upload_of_an_adapter(pasted: Callable[[str], list[str]], name: str) -> None:
    Path(name).mkdir()
    Path(name, "adapter_config.json").write_text("{}")
    said = message_of(lambda: find_source(Path(name)))
    verb, repo, path = pasted(backticked(said, "hf upload"))
    assert (verb, repo) == ("upload", "ORG/NAME")
    assert Path(path).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two words", "it's", '"quoted"', "$HOME", "`touch owned`"])
def test_the_tokenizer_that_faster_whisper_reads(
    pasted: Callable[[str], list[str]], name: str
) -> None:
    pytest.importorskip("ctranslate2")
    make_whisper(Path(name))
    vocabulary = json.loads(Path(name, "tokenizer.json").read_text())["model"]["vocab"]
    Path(name, "tokenizer.json").unlink()
    Path(name, "vocab.json").write_text(json.dumps(vocabulary))
    Path(name, "merges.txt").write_text("#version: 0.2\n")
    said = message_of(lambda: export(Path(name), Path("out"), format="ct2"))
    pasted(backticked(said, "python -c"))
    assert "--config processor" in said
    export(Path(name), Path("out"), format="ct2", config_dir="processor")
    assert Path("out/tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["two words", "it's", "-dash", "$HOME"])
def test_the_push_that_broke_off(
    wrapped: Path, pasted: Callable[[str], list[str]], hub: Hub, shell: Shell, name: str
) -> None:
    shutil.copytree(wrapped / "base", "base")
    state = load_file("base/model.safetensors")
    save_file({key: value + 0.01 for key, value in state.items()}, "tuned.safetensors")
    hub.fail("POST", "/commit/", 500, times=1)
    place = f"./{name}" if name.startswith("-") else name
    output = command("-o", place)
    ended = shell(f"lorsmerge merge base tuned.safetensors {output} --push you/x")
    assert (ended.code, "is written, but not uploaded" in ended.err) == (1, True)
    pasted(backticked(ended.err, "lorsmerge push"))
    assert "model.safetensors" in hub.files("you/x")


@EVERY_NAME
def test_the_output_of_another_kind(pasted: Callable[[str], list[str]], name: str) -> None:
    Path("base").mkdir()
    for wrong in (f"{name}.bin", f"{name}.pt"):
        faults = check_weights_path(Path(wrong))
        said = console.shown(str(faults[0]))
        one, other = said.split("Write ")[1].removesuffix(".").rsplit(" or ", 1)
        assert pasted(f"hf {one}") == ["-o", _path(f"{name}.safetensors")]
        assert pasted(f"hf {other}") == ["-o", _path(f"{name}/")]


def _path(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name


@pytest.mark.slow
@pytest.mark.parametrize("columns", ["20", "80"])
def test_no_message_is_broken_at_the_edge_of_a_terminal(
    process: Callable[..., Ended], columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A usage error of Typer's own, one of ours, and one that is found by the work."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    name = "a-name-" * 20
    for line in (
        f"report r.json -o out --control {name}",
        f"inspect --{name}",
        f"inspect {name}",
        f"eval base --data x.jsonl --task {name}",
    ):
        ended = process(f"lorsmerge {line}")
        plain = re.sub(r"\x1b\[[0-9;]*m", "", ended.err)
        assert ended.code in (1, 2)
        assert name in plain
