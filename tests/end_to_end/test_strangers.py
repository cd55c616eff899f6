"""Folders, deltas, names and tokens of a stranger's, through the real commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands_ended import Ended, Shell
from hostile import NAMES, STEERS
from hub_server import READER, WRITER, Hub
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorsmerge_cli.outputs import MANIFEST

REPO = "you/babel"
Succeed = Callable[[str], Ended]


@pytest.fixture
def secrets(tiny: Path) -> Path:
    """`tiny`, with a key beside it."""
    (tiny.parent / "home").mkdir()
    (tiny.parent / "home" / "id_rsa").write_text("PRIVATE KEY")
    return tiny


def rewritten(path: Path, **metadata: str) -> None:
    """The delta with another header."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    path.unlink()
    save_file(tensors, path, metadata=header | {f"lorsmerge.{k}": v for k, v in metadata.items()})


# links in a base folder


LINKS = {"vocab.json": "../../home/id_rsa", "tokenizer.json": "/dev/zero", "merges.txt": "gone",
         "config.json": "../../home/id_rsa"}  # fmt: skip


@pytest.mark.parametrize(("name", "target"), LINKS.items(), ids=LINKS)
@pytest.mark.parametrize("options", ["", "--dry-run", "--force"])
def test_a_link_out_of_the_base_is_refused_before_any_work(
    secrets: Path, shell: Shell, name: str, target: str, options: str
) -> None:
    (secrets / "base" / name).unlink(missing_ok=True)
    (secrets / "base" / name).symlink_to(target)
    before = sorted(path.name for path in secrets.iterdir())
    ended = shell(f"lorsmerge merge base ca.delta -o merged {options}")
    assert ended.code == 1
    assert f"base/{name} " in ended.err
    assert "PRIVATE" not in ended.err + ended.out
    assert sorted(path.name for path in secrets.iterdir()) == before


def test_what_else_lies_in_the_base_is_left_there(secrets: Path, succeed: Succeed) -> None:
    base = secrets / "base"
    (base / "assets").symlink_to("../../home")
    (base / "loop").symlink_to(".")
    (base / "dangling").symlink_to("nowhere")
    os.mkfifo(base / "fifo")
    (base / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    (base / "corpus.tar").write_bytes(b"x" * 1000)
    (base / "vocab.json").write_text("{}")
    for _ in range(2):
        succeed("lorsmerge merge base ca.delta -o base/merged --force")
    merged = {path.name for path in (base / "merged").rglob("*")}
    assert merged == {"config.json", "vocab.json", "model.safetensors", "lorsmerge.json", MANIFEST}


def test_code_of_the_base_is_copied_and_said(tiny: Path, succeed: Succeed) -> None:
    config = {"dtype": "float32", "auto_map": {"AutoModel": "modeling_x.X"}}
    (tiny / "base" / "config.json").write_text(json.dumps(config))
    (tiny / "base" / "modeling_x.py").write_text("")
    (tiny / "base" / "train.py").write_text("")
    ended = succeed("lorsmerge merge base ca.delta -o merged")
    assert "'modeling_x.py'" in ended.err
    assert (tiny / "merged" / "modeling_x.py").exists()
    assert not (tiny / "merged" / "train.py").exists()


@pytest.mark.parametrize("target", ["../../home/id_rsa", "../../home", "/dev/zero", "gone"])
@pytest.mark.parametrize("name", ["vocab.json", "notes", "sub/notes"])
def test_a_link_out_of_what_is_pushed_is_refused(
    hub: Hub, secrets: Path, shell: Shell, name: str, target: str
) -> None:
    shutil.copytree("base", "merged")
    path = secrets / "merged" / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target if target[0] == "/" or "/" not in name else f"../{target}")
    ended = shell(f"lorsmerge push merged {REPO}")
    assert (ended.code, f"merged/{name} " in ended.err) == (1, True), ended.err
    assert hub.repos == {}


def test_what_is_hidden_or_linked_inside_is_no_fault(
    hub: Hub, secrets: Path, succeed: Succeed
) -> None:
    shutil.copytree("base", "merged")
    merged = secrets / "merged"
    (merged / ".secret").symlink_to("../../home/id_rsa")
    (merged / "runs").symlink_to("../../home")
    (merged / "loop").symlink_to(".")
    (merged / "copy.json").symlink_to("config.json")
    ended = succeed(f"lorsmerge push merged {REPO}")
    arrived = set(hub.files(REPO)) - {"README.md", ".gitattributes"}
    assert arrived == {"config.json", "copy.json", "model.safetensors"}
    assert all(name in ended.out for name in arrived)  # what went is listed


# local paths


def test_no_path_of_this_machine_is_pushed(hub: Hub, tiny: Path, succeed: Succeed) -> None:
    home = tiny / "home of anna"
    shutil.copytree("base", home / "base")
    shutil.move("ca.safetensors", home)
    succeed(
        f"lorsmerge delta '{home}/base' '{home}/ca.safetensors' -o '{home}/ca.delta' --language ca"
    )
    succeed(f"lorsmerge prune '{home}/ca.delta' --svp 0.5 -o '{home}/small.delta'")
    succeed(f"lorsmerge merge '{home}/base' '{home}/small.delta' de.delta -o '{home}/merged'")
    assert str(home) in (home / "merged" / "lorsmerge.json").read_text()  # at home it is of use
    ended = succeed(f"lorsmerge push '{home}/merged' {REPO}")
    assert "lorsmerge.json is uploaded with names of files" in ended.err
    assert "model.safetensors contains local paths" in ended.err  # in its header
    ended = succeed(f"lorsmerge push '{home}/small.delta' you/delta")
    assert "local paths" not in ended.err
    for repo, header in ((REPO, {"model.safetensors"}), ("you/delta", set())):
        for name, content in hub.files(repo).items():
            if name not in header:
                assert b"anna" not in content, (repo, name)
                assert str(tiny).encode() not in content, (repo, name)
    # and the merge can be made again from the card and from the record, beside its files
    away = tiny / "away"
    away.mkdir()
    shutil.copytree(home / "base", away / "base")
    for path in (home / "small.delta", tiny / "de.delta"):
        shutil.copy(path, away)
    (away / "card.md").write_bytes(hub.files(REPO)["README.md"])
    (away / "lorsmerge.json").write_bytes(hub.files(REPO)["lorsmerge.json"])
    os.chdir(away)
    for recipe in ("card.md", "lorsmerge.json"):
        succeed(f"lorsmerge merge --recipe {recipe} -o {recipe}.safetensors")
        made = load_file(f"{recipe}.safetensors")
        wanted = load_file(home / "merged" / "model.safetensors")
        assert all(made[name].equal(wanted[name]) for name in wanted)


def test_a_path_in_a_delta_made_elsewhere_is_told(hub: Hub, tiny: Path, succeed: Succeed) -> None:
    rewritten(tiny / "ca.delta", history=json.dumps(["lorsmerge delta /home/anna/base x -o y"]))
    ended = succeed(f"lorsmerge push ca.delta {REPO}")
    assert "ca.delta contains local paths" in ended.err
    assert b"/home/anna" not in hub.files(REPO)["README.md"]


def test_relative_paths_of_a_history_stay(tiny: Path, succeed: Succeed) -> None:
    (tiny / "runs").mkdir()
    succeed("lorsmerge delta base ca.safetensors -o runs/ca.delta")
    assert (
        "made by: lorsmerge delta base ca.safetensors -o runs/ca.delta"
        in succeed("lorsmerge inspect runs/ca.delta").out
    )


# names


PRINTED = {key: re.sub(r"[/\0]", "_", name)[:60] for key, name in NAMES.items()}


@pytest.mark.parametrize("name", PRINTED.values(), ids=PRINTED)
def test_a_tensors_name_steers_no_terminal(tiny: Path, shell: Shell, name: str) -> None:
    tensors = load_file("ca.safetensors")
    try:
        save_file(
            tensors | {name: tensors["model.encoder.conv1.weight"].clone()}, "nasty.safetensors"
        )
    except Exception:  # safetensors takes no halves of pairs
        pytest.skip("no name of a tensor")
    for line in ("inspect nasty.safetensors", "inspect nasty.safetensors --json",
                 "merge base nasty.safetensors -o x", "delta base nasty.safetensors -o x.delta --debug"):  # fmt: skip
        ended = shell(f"lorsmerge {line}")
        printed = ended.out + ended.err
        assert not STEERS.search(printed), line
        assert not re.search("^(error|note): (nothing|go on)", printed, re.MULTILINE)
        if "--json" in line:
            groups = json.loads(ended.out)["files"][0]["groups"]
            assert any(name in group["name"] for group in groups) or re.search(r"\d", name)


@pytest.mark.parametrize("name", PRINTED.values(), ids=PRINTED)
def test_a_files_name_steers_no_terminal(tiny: Path, shell: Shell, name: str) -> None:
    if "\ud800" in name:
        pytest.skip("no name of a file")
    for line in (f"inspect {shlex.quote(name)}", f"merge base {shlex.quote(name)} -o x",
                 f"inspect ca.delta {shlex.quote('--' + name)}", f"merge base ca.delta -o x --device {shlex.quote(name)}",
                 f"push {shlex.quote(name)} {REPO}", shlex.quote(name)):  # fmt: skip
        ended = shell(f"lorsmerge {line}")
        assert ended.code != 0
        assert not STEERS.search(ended.out + ended.err), line
        assert not re.search("^(error|note): (nothing|go on)", ended.err, re.MULTILINE)


def test_a_strangers_recipe_puts_no_command_into_a_remedy(
    hub: Hub, tiny: Path, shell: Shell
) -> None:
    hub.add_repo("org/base", {"config.json": "{}"})
    recipe = 'base = "org/base@x; touch owned"\ndeltas = [{path = "ca.delta"}]\n'
    Path("r.toml").write_text(recipe)
    ended = shell("lorsmerge merge --recipe r.toml -o x")
    assert ended.code == 1
    for command in re.findall("`([^`]*)`", ended.err):
        assert "touch" not in shlex.split(command)


# tokens


BAD = {"a line break": "hf_first\nhf_second", "a control character": "hf_\x1b[31msecret",
       "a character beyond ASCII": "hf_sécret-of-mine", "a blank": "Bearer hf_secretOfMine",
       "a character beyond ASCII ": "hf_\u202esecretOfMine"}  # fmt: skip


@pytest.mark.parametrize(("kind", "token"), BAD.items(), ids=BAD)
@pytest.mark.parametrize("where", ["--token", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "stored"])
def test_a_token_that_is_none_is_told_before_it_is_sent(
    hub: Hub,
    tiny: Path,
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    token: str,
    where: str,
) -> None:
    options = ""
    monkeypatch.delenv("HF_TOKEN")
    if where == "--token":
        options = f" --token {shlex.quote(token)}"
    elif where == "stored":
        from huggingface_hub import constants

        Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True, exist_ok=True)
        Path(constants.HF_TOKEN_PATH).write_text(token)
    else:
        monkeypatch.setenv(where, token)
    lines = [f"lorsmerge push base {REPO} --debug{options}"]
    lines += ["lorsmerge merge org/base ca.delta -o x --debug"] if not options else []
    for line in lines:
        ended = shell(line)
        assert ended.code == 1
        assert f"is invalid: it contains {kind.strip()}" in ended.err
        assert not any(
            word in ended.err + ended.out for word in ("secret", "second", "first", "sécret")
        )
    assert hub.calls == []


@pytest.mark.parametrize("token", [f"{WRITER}\n", f"  {WRITER}", f"\r\n{WRITER}\t"])
def test_blanks_around_a_token_do_no_harm(
    hub: Hub, tiny: Path, succeed: Succeed, token: str
) -> None:
    succeed(f"lorsmerge push base {REPO} --token {shlex.quote(token)}")
    assert "model.safetensors" in hub.files(REPO)


def test_an_empty_token_is_told(hub: Hub, tiny: Path, shell: Shell) -> None:
    ended = shell(f"lorsmerge push base {REPO} --token ''")
    assert (ended.code, "--token is empty" in ended.err) == (1, True)


def test_no_token_is_in_an_exceptions_text(
    hub: Hub, tiny: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a library puts into its message: of a header, of an address, of a request."""
    monkeypatch.setenv("HTTPS_PROXY", "http://anna:passwordOfAnna@proxy.example:80")
    monkeypatch.setenv("HF_TOKEN", READER)
    for raised in (ValueError, RuntimeError, ConnectionError, OSError):

        def fail(*_: object, kind: type[Exception] = raised, **__: object) -> None:
            raise kind(
                f"Illegal header b'Bearer {READER}' ({WRITER!r}) by "
                "http://anna:passwordOfAnna@proxy.example:80/x"
            )

        monkeypatch.setattr("huggingface_hub.HfApi.create_commit", fail)
        for options in ("", "--debug", "--json", "--debug --quiet"):
            ended = shell(f"lorsmerge push base {REPO} --token {WRITER} {options}")
            assert ended.code == 1
            for secret in (READER, WRITER, "passwordOfAnna"):
                assert secret not in ended.out + ended.err
