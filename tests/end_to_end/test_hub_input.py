"""Commands that take their inputs from a Hub, and what they say where it has none for them."""

from __future__ import annotations

import errno
import json
import re
import shutil
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import READER, WRITER, Hub
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file
from speech_models import make_clip, make_tuned, make_whisper

from lorsmerge_cli import console

WORK = 1  # exit code
RATIOS = " --svp 0.5 --mp 0.5"
DISK = namedtuple("DISK", "total used free")
OTHER_WEIGHTS = ("flax_model.msgpack", "tf_model.h5", "pytorch_model.bin", "onnx/model.onnx")
NOT_NEEDED = ("README.md", "training_args.bin", "trainer_state.json", "runs/log", "run_train.py")


@pytest.fixture
def stocked(tiny: Path, hub: Hub) -> Hub:
    """Repositories org/base, org/ca (a delta) and org/many (two); their files are in the folder too."""
    clutter = dict.fromkeys((*OTHER_WEIGHTS, *NOT_NEEDED), "clutter")
    files = {path.name: path.read_bytes() for path in (tiny / "base").iterdir()}
    hub.add_repo("org/base", clutter | files)
    hub.add_repo("org/ca", {"ca.delta": (tiny / "ca.delta").read_bytes(), "README.md": "a delta"})
    deltas = {f"{name}.delta": (tiny / f"{name}.delta").read_bytes() for name in ("ca", "de")}
    hub.add_repo("org/many", deltas)
    return hub


def commit_of(hub: Hub, repo: str) -> str:
    return hub.repos[repo].refs["main"]


def downloaded(hub: Hub) -> set[str]:
    return {call.path.split("/")[-1] for call in hub.seen("GET", "/resolve/")}


def weights_of(path: str) -> dict[str, torch.Tensor]:
    return load_file(Path(path) / "model.safetensors")


def assert_same(a: str, b: str) -> None:
    ours, theirs = weights_of(a), weights_of(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- what works -------------------------------------------------------------------------------


def test_a_merge_from_the_hub_is_that_of_the_same_files_here(
    stocked: Hub, succeed: Callable
) -> None:
    succeed("lorsmerge merge base ca.delta:svp=0.3 de.delta -o here" + RATIOS)
    ended = succeed(
        "lorsmerge merge org/base@main org/ca:svp=0.3 org/many:de.delta -o there" + RATIOS
    )
    assert "org/many:de.delta" in ended.out
    assert_same("here", "there")
    assert (Path("there") / "config.json").is_file()
    assert downloaded(stocked) == {"config.json", "model.safetensors", "ca.delta", "de.delta"}


def test_the_commit_is_recorded_and_makes_the_merge_again(stocked: Hub, succeed: Callable) -> None:
    base, ca = commit_of(stocked, "org/base"), commit_of(stocked, "org/ca")
    succeed("lorsmerge merge org/base org/ca -o out --save-recipe r.toml" + RATIOS)
    recipe = json.loads(Path("out/lorsmerge.json").read_text())["recipe"]
    assert (recipe["base"], recipe["deltas"][0]["path"]) == (f"org/base@{base}", f"org/ca@{ca}")
    assert f'base = "org/base@{base}"' in Path("r.toml").read_text()
    # the branches move on; both records still make the same model, and show a shorter commit
    moved = weights_of("base") | {"model.decoder.embed_tokens.weight": torch.zeros(12, 8)}
    shutil.copytree("base", "newer")
    from safetensors.torch import save_file

    save_file(moved, "newer/model.safetensors")
    stocked.add_repo("org/base", Path("newer"))
    stocked.add_repo("org/ca", {"ca.delta": Path("de.delta").read_bytes()})
    for number, source in enumerate(("out/lorsmerge.json", "r.toml")):
        ended = succeed(f"lorsmerge merge --recipe {source} -o again{number}")
        assert f"org/ca@{ca[:10]} " in ended.out
        assert_same("out", f"again{number}")
    succeed("lorsmerge merge org/base org/ca --allow-other-base -o moved" + RATIOS)
    assert (weights_of("moved")["model.decoder.embed_tokens.weight"].abs() < 0.01).all()


def test_a_delta_names_the_commits_it_was_taken_from(stocked: Hub, succeed: Callable) -> None:
    stocked.add_repo("me/tuned", {"model.safetensors": Path("ca.safetensors").read_bytes()})
    succeed("lorsmerge delta org/base me/tuned -o x.delta --task asr --language ca")
    base, tuned = commit_of(stocked, "org/base"), commit_of(stocked, "me/tuned")
    with safe_open("x.delta", "pt") as file:
        metadata = file.metadata()
    assert metadata["lorsmerge.base.name"] == f"org/base@{base}"
    (made_by,) = json.loads(metadata["lorsmerge.history"])
    assert made_by.startswith("lorsmerge delta org/base me/tuned")
    assert made_by.endswith(f"  # org/base@{base}, me/tuned@{tuned}")
    ours, wanted = load_file("x.delta"), load_file("ca.delta")
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_other_commands_take_ids_too(stocked: Hub, succeed: Callable) -> None:
    ended = succeed("lorsmerge inspect org/base org/many:de.delta")
    assert "org/base: checkpoint" in ended.out
    assert "org/many:de.delta: delta" in ended.out
    succeed("lorsmerge prune org/ca -o theirs.delta" + RATIOS)
    with safe_open("theirs.delta", "pt") as file:
        made_by = json.loads(file.metadata()["lorsmerge.history"])[-1]
    assert made_by.endswith(f"  # org/ca@{commit_of(stocked, 'org/ca')}")
    succeed("lorsmerge prune ca.delta -o ours.delta" + RATIOS)
    ours, theirs = load_file("ours.delta"), load_file("theirs.delta")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_branch_and_what_is_here_under_the_name(stocked: Hub, succeed: Callable) -> None:
    stocked.add_repo("org/ca", {"ca.delta": Path("de.delta").read_bytes()}, ref="v2")
    succeed("lorsmerge merge base org/ca@v2 -o branch" + RATIOS)
    succeed("lorsmerge merge base de.delta -o wanted" + RATIOS)
    assert_same("branch", "wanted")
    Path("org").mkdir()
    shutil.copy("de.delta", "org/ca")  # a file of this very name comes first
    requests = len(stocked.calls)
    succeed("lorsmerge merge base org/ca -o local" + RATIOS)
    assert_same("local", "wanted")
    assert len(stocked.calls) == requests


def test_shards_and_old_pickles_are_fetched(stocked: Hub, succeed: Callable) -> None:
    tensors = weights_of("base")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    stocked.add_repo("org/sharded", {
        "model.safetensors.index.json": json.dumps(index), "pytorch_model.bin": "clutter",
        "model-00001-of-00001.safetensors": Path("base/model.safetensors").read_bytes(),
    })  # fmt: skip
    torch.save(tensors, "old.bin")
    stocked.add_repo("org/old", {"pytorch_model.bin": Path("old.bin").read_bytes()})
    for repo in ("org/sharded", "org/old"):
        succeed(f"lorsmerge merge {repo} ca.delta -o {repo.replace('/', '-')}" + RATIOS)
    assert_same("org-sharded", "org-old")
    wanted = {
        "model.safetensors.index.json",
        "model-00001-of-00001.safetensors",
        "pytorch_model.bin",
    }
    assert downloaded(stocked) == wanted
    assert not stocked.seen("GET", "org/sharded/resolve/main/pytorch_model.bin")


def test_speech_commands_take_ids(
    hub: Hub, tmp_path: Path, succeed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = make_whisper(Path("base"))
    hub.add_repo("org/whisper", base)
    make_tuned(base, Path("tuned"), seed=1, step=0.5)
    hub.add_repo("me/tuned", {"tuned.safetensors": Path("tuned/model.safetensors").read_bytes()})
    make_clip(Path("clip.wav"), 1, 1.2)
    line = "lorsmerge transcribe {} --audio clip.wav --language ca --device cpu --beam 1 --json"
    here = json.loads(succeed(line.format("base tuned")).out)["transcripts"]
    there = json.loads(
        succeed(line.format("org/whisper me/tuned:tuned.safetensors --config org/whisper")).out
    )["transcripts"]
    assert [item["text"] for item in there] == [item["text"] for item in here]
    assert here[0]["text"] != here[1]["text"]
    # --config alone brings no weights
    hub.calls.clear()
    shutil.rmtree(tmp_path / "hf_home")
    succeed(line.format("tuned/model.safetensors --config org/whisper"))
    assert "config.json" in downloaded(hub)
    assert "model.safetensors" not in downloaded(hub)


# --- without a network ------------------------------------------------------------------------


def test_what_is_in_the_cache_does_without_the_hub(
    stocked: Hub, succeed: Callable, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "lorsmerge merge org/base org/ca:ca.delta --force -o {}" + RATIOS
    succeed(line.format("online"))
    commit = commit_of(stocked, "org/base")
    stocked.add_repo("org/base", {"model.safetensors": b"newer"})
    stocked.fail("GET", "/api/models/", 500, times=1000)
    succeed(line.format("failing"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests = len(stocked.calls)
    succeed(line.format("offline"))
    assert len(stocked.calls) == requests
    for name in ("failing", "offline"):
        assert_same("online", name)
        recipe = json.loads(Path(name, "lorsmerge.json").read_text())["recipe"]
        assert recipe["base"] == f"org/base@{commit}"
    ended = shell("lorsmerge merge org/base@dev org/ca -o x")
    assert ended.code == WORK
    assert "org/base" in ended.err
    assert "HF_HUB_OFFLINE" in ended.err


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a cache that has some files of lab/whisper, and go offline."""

    def make(files: dict[str, bytes | str], revision: str = "main") -> Path:
        repo = tmp_path / "cache" / "models--lab--whisper"
        snapshot = repo / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / revision).write_text("a" * 40)
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (snapshot / name).write_bytes(data)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        return snapshot

    return make


SHARDS = {name: f"model-0000{n}-of-00003.safetensors" for n, name in enumerate("abc", 1)}
INDEX = json.dumps({"weight_map": SHARDS})


@pytest.mark.parametrize(
    ("there", "line", "absent"),
    [
        (["config.json"], "inspect lab/whisper", "holds no weights"),
        (["config.json"], "inspect lab/whisper:model.safetensors", "no file 'model.safetensors'"),
        (["README.md"], "delta lab/whisper ca.delta -o x.delta", "holds no weights"),
        (
            ["config.json", "model.safetensors.index.json", "model-00002-of-00003.safetensors"],
            "inspect lab/whisper",
            "'model-00001-of-00003.safetensors', 'model-00003-of-00003.safetensors'",
        ),
        (["model.safetensors"], "eval lab/whisper --data x.jsonl", "holds no config.json"),
        (
            ["model.safetensors", "config.json"], "eval lab/whisper --data x.jsonl",
            "no tokenizer (tokenizer.json or vocab.json). lab/whisper holds no feature extractor",
        ),
        (
            ["model.safetensors", "config.json"], "export lab/whisper --format ct2 -o x",
            "holds no feature extractor",
        ),
        (
            ["config.json"], "transcribe ca.safetensors --config lab/whisper -a x.wav --language ca",
            "holds no tokenizer",
        ),
    ],
)  # fmt: skip
def test_a_part_of_a_repository_in_the_cache_is_told_as_what_it_is(
    tiny: Path, cached: Callable, shell: Callable, there: list[str], line: str, absent: str
) -> None:
    contents: dict[str, bytes | str] = dict.fromkeys(there, '{"model_type": "whisper"}')
    contents |= {
        name: Path("ca.safetensors").read_bytes() for name in there if "safetensors" in name
    }
    contents |= {name: INDEX for name in there if name.endswith("index.json")}
    cached(contents)
    Path("x.jsonl").write_text("{}")
    make_clip(Path("x.wav"), 1, 1.0)
    ended = shell(f"lorsmerge {line}")
    assert ended.code == WORK
    assert absent in ended.err
    assert "HF_HUB_OFFLINE is set" in ended.err
    for name in there:
        assert repr(name) in ended.err.split("has only")[1]
    assert "`HF_HUB_OFFLINE=0 hf download lab/whisper`" in ended.err
    assert "--config" not in ended.err  # which would not help


def test_a_revision_is_fetched_by_its_name(tiny: Path, cached: Callable, shell: Callable) -> None:
    cached({"config.json": "{}"}, "dev")
    ended = shell("lorsmerge inspect lab/whisper@dev")
    assert "`HF_HUB_OFFLINE=0 hf download lab/whisper --revision dev`" in ended.err


def test_a_hub_out_of_reach_is_told_in_place_of_the_variable(
    stocked: Hub, succeed: Callable, shell: Callable
) -> None:
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    succeed("lorsmerge inspect org/many:de.delta")
    stocked.fail("GET", "/api/models/", 500, times=1000)
    ended = shell("lorsmerge inspect org/many:ca.delta")
    assert ended.code == WORK
    assert f"{stocked.url} cannot be reached, and of org/many the cache" in ended.err
    assert "has only 'de.delta'" in ended.err


def test_a_download_that_breaks_off_is_gone_on_with(stocked: Hub, succeed: Callable) -> None:
    stocked.fail("GET", "resolve", drop_after=300)
    succeed("lorsmerge inspect org/many:de.delta")
    assert [call.status for call in stocked.seen("GET", "/resolve/")] == [0, 200]


def test_a_connection_that_keeps_breaking(stocked: Hub, succeed: Callable, shell: Callable) -> None:
    stocked.fail("GET", "ca.delta", drop_after=300, times=100)
    line = "lorsmerge merge org/base org/ca -o x"
    ended = shell(line)
    assert ended.code == WORK
    assert ended.err.splitlines()[-1].startswith("error: org/ca: ")
    assert "run the command again: complete files are kept" in ended.err
    stocked.heal()
    stocked.calls.clear()
    succeed(line)
    assert downloaded(stocked) == {"ca.delta"}


def test_a_branch_that_moves_while_it_is_fetched(
    stocked: Hub, succeed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorsmerge_cli.hub import files as hub

    looked_up = commit_of(stocked, "org/ca")

    download = hub.snapshot_download

    def pushed_first(repo: str, **settings: object) -> str:
        if repo == "org/ca" and commit_of(stocked, "org/ca") == looked_up:
            stocked.add_repo("org/ca", {"ca.delta": Path("de.delta").read_bytes()})
        return download(repo, **settings)

    monkeypatch.setattr(hub, "snapshot_download", pushed_first)
    succeed("lorsmerge merge base org/ca -o there" + RATIOS)
    succeed("lorsmerge merge base ca.delta -o here" + RATIOS)
    assert commit_of(stocked, "org/ca") != looked_up
    assert_same("here", "there")
    recipe = json.loads(Path("there/lorsmerge.json").read_text())["recipe"]
    assert recipe["deltas"][0]["path"] == f"org/ca@{looked_up}"


def test_nothing_shows_in_a_pipe(stocked: Hub, process: Callable) -> None:
    ended = process("lorsmerge inspect org/many:de.delta --no-spectra")
    assert ended.code == 0
    assert ended.err == ""


def test_a_long_download_prints_lines_in_a_pipe(
    stocked: Hub, succeed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "INTERVAL", 0.001)
    told: list[tuple[int, int]] = []
    real = console._Lines.__call__

    def slowly(self: Any, done: int, total: int) -> None:
        real(self, done, total)
        if self.label.startswith("download"):
            told.append((done, total))
            time.sleep(0.05)

    monkeypatch.setattr(console._Lines, "__call__", slowly)
    ended = succeed("lorsmerge inspect org/base --no-spectra")
    size = sum(path.stat().st_size for path in Path("base").iterdir())
    assert sum(done for done, _ in told) == size
    assert {total for _, total in told} == {size}
    shown = re.escape(console.size(size))
    assert re.search(rf"^download of org/base: .*/{shown}", ended.err, re.MULTILINE)
    assert "\r" not in ended.err
    told.clear()
    succeed("lorsmerge inspect org/base --no-spectra")  # is in the cache
    assert sum(done for done, _ in told) == 0


# --- bad input --------------------------------------------------------------------------------


def refused(ended: Any, *words: str) -> None:
    """One paragraph that says all the words, and no secret."""
    assert ended.code == WORK, ended.out
    assert ended.out == ""
    assert [word for word in words if word not in ended.err] == [], ended.err
    for unkind in ("Traceback", "bug in lorsmerge", "\n\n", WRITER, "hf_secret"):
        assert unkind not in ended.err.strip()


MERGE = "lorsmerge merge {} ca.delta -o x"
IDS = {
    "no such repository": (
        "org/nothing",
        ("org/nothing", "not a local file or folder", "hf auth login"),
    ),
    "no such revision": ("org/base@dev", ("org/base", "'dev'", "/org/base/refs")),
    "no such file": ("org/base:x.bin", ("org/base", "'x.bin'", "model.safetensors")),
    "a file that climbs": ("org/base:../x", ("org/base", "'../x'")),
    "two slashes": ("org/base/model", ("org/base/model: no such file", "ORG/NAME")),
    "characters that no id has": ("org/ba se", ("org/ba se: no such file", "ORG/NAME")),
    "a delta for a base": ("org/ca", ("org/ca is a delta", "checkpoint")),
    "several deltas": ("org/many", ("org/many", "2 deltas", "org/many:ca.delta")),
    "an id that ends wrongly": ("org/base-", ("org/base-", "not an id that the Hub accepts")),
    "an empty revision": ("org/base@", ("no such file",)),
}


@pytest.mark.parametrize(("reference", "words"), IDS.values(), ids=IDS)
def test_ids_that_lead_nowhere(
    stocked: Hub, shell: Callable, contents: Callable, reference: str, words: tuple[str, ...]
) -> None:
    before = contents(Path.cwd())
    refused(shell(MERGE.format(f"'{reference}'")), *words)
    assert contents(Path.cwd()) == before
    assert downloaded(stocked) <= {"ca.delta"}


NAMES = ("../../evil.json", "/etc/evil.json", "a/../../evil.json", "..\\evil.json", "c:evil.json")


@pytest.mark.parametrize("name", NAMES)
def test_names_that_climb_out_are_refused(stocked: Hub, shell: Callable, name: str) -> None:
    files = stocked.files("org/base")
    stocked.add_repo("org/climber", files | {name: "{}"})
    refused(shell(MERGE.format("org/climber")), "org/climber", "evil.json", "lead out")
    assert downloaded(stocked) == set()


def test_an_index_that_climbs_out_is_refused(stocked: Hub, shell: Callable) -> None:
    index = {"weight_map": {"a": "../../../../../ca.delta"}}
    stocked.add_repo("org/climber", {"model.safetensors.index.json": json.dumps(index)})
    refused(shell(MERGE.format("org/climber")), "model.safetensors.index.json", "outside")


def test_a_repository_without_weights(stocked: Hub, shell: Callable) -> None:
    stocked.add_repo("org/tokenizer", {"tokenizer.json": "{}"})
    refused(shell(MERGE.format("org/tokenizer")), "org/tokenizer", "no weights", "tokenizer.json")
    stocked.add_repo("org/other", {"model.fp16.safetensors": "x"})
    refused(shell(MERGE.format("org/other")), "org/other:model.fp16.safetensors")


def test_a_gated_repository(stocked: Hub, shell: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    stocked.add_repo("org/gated", stocked.files("org/base"), gated=True)
    for token in (None, READER):
        monkeypatch.delenv("HF_TOKEN")
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        refused(
            shell(MERGE.format("org/gated")), "org/gated is gated", "/org/gated", "hf auth login"
        )
        monkeypatch.setenv("HF_TOKEN", WRITER)
    assert downloaded(stocked) == set()


def test_a_private_one_needs_a_token(
    stocked: Hub, shell: Callable, succeed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    stocked.add_repo("you/private", stocked.files("org/base"), private=True)
    monkeypatch.delenv("HF_TOKEN")
    refused(shell(MERGE.format("you/private")), "you/private", "without a token", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", READER)
    succeed(MERGE.format("you/private"))


@pytest.mark.parametrize("debug", ["", " --debug"])
def test_a_token_that_is_not_known_is_not_shown(
    stocked: Hub, shell: Callable, monkeypatch: pytest.MonkeyPatch, debug: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mySecretMySecret")
    ended = shell(MERGE.format("org/base") + debug)
    assert ended.code == WORK
    assert "does not know this token" in ended.err
    assert "hf auth login" in ended.err
    assert "hf_mySecret" not in ended.err


@pytest.mark.parametrize(("status", "words"), [(429, "too many requests"), (500, "failed")])
def test_a_hub_that_fails(stocked: Hub, shell: Callable, status: int, words: str) -> None:
    stocked.fail("GET", "/api/models/", status, times=1000)
    refused(
        shell(MERGE.format("org/base")),
        "org/base is neither a local file",
        words,
        "hf_home",
        "later",
    )


def test_no_network(stocked: Hub, shell: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(shell(MERGE.format("org/base")), "org/base", "cannot be reached", "network")


def test_nothing_is_downloaded_where_something_is_missing(stocked: Hub, shell: Callable) -> None:
    ended = shell("lorsmerge merge org/base org/nothing org/many gone.delta -o x")
    refused(ended, "3 problems", "org/nothing", "org/many", "gone.delta")
    assert downloaded(stocked) == set()
    ended = shell("lorsmerge inspect org/base org/nothing gone.delta")
    refused(ended, "2 problems", "org/nothing", "gone.delta")
    assert downloaded(stocked) == set()


def test_a_disk_too_small_is_told_before(
    stocked: Hub, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage
    free = DISK(10**12, 10**12, 1000)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: free if "hf_home" in str(path) else usage(path)
    )
    Path(constants.HF_HUB_CACHE).mkdir(parents=True)
    refused(
        shell(MERGE.format("org/base")),
        "org/base",
        "bytes to download",
        "1,000 bytes free",
        "HF_HOME",
    )
    assert downloaded(stocked) == set()


def test_a_disk_that_fills_up(
    stocked: Hub, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorsmerge_cli.hub import files as hub

    def fill(*arguments: object, **settings: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", fill)
    refused(shell(MERGE.format("org/base")), constants.HF_HUB_CACHE, "No space left", "HF_HOME")


def test_a_delta_of_another_base(stocked: Hub, shell: Callable, succeed: Callable) -> None:
    succeed("lorsmerge delta org/base ca.safetensors -o x.delta")
    stocked.add_repo("me/delta", {"x.delta": Path("x.delta").read_bytes()})
    refused(
        shell("lorsmerge merge de.safetensors me/delta -o y.safetensors"),
        "me/delta was taken from another model",
        f"'org/base@{commit_of(stocked, 'org/base')}'",
        "--allow-other-base",
    )


def test_a_model_where_a_delta_is_needed(stocked: Hub, shell: Callable) -> None:
    refused(
        shell("lorsmerge prune org/base -o x.delta" + RATIOS),
        "org/base is a model, and a delta is needed",
        "lorsmerge delta BASE org/base",
    )
    assert downloaded(stocked) == set()


def test_a_model_that_cannot_be_asked(hub: Hub, shell: Callable, tmp_path: Path) -> None:
    base = make_whisper(tmp_path / "base")
    files = {name: (base / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.add_repo("me/tuned", files)
    make_clip(tmp_path / "clip.wav", 1, 0.5)
    line = f"lorsmerge transcribe me/tuned --audio {tmp_path / 'clip.wav'} --language ca"
    refused(shell(line), "me/tuned holds no tokenizer", "me/tuned holds no feature", "--config")


def test_a_pickle_with_code_is_not_run(stocked: Hub, shell: Callable) -> None:
    mark = Path("mark").resolve()

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (mark,)

    torch.save({"model": Trap()}, "theirs.bin")
    stocked.add_repo("org/trap", {"pytorch_model.bin": Path("theirs.bin").read_bytes()})
    for command in (
        "inspect org/trap",
        "delta base org/trap -o x.delta",
        "merge base org/trap -o x",
    ):
        refused(shell(f"lorsmerge {command}"), "was not opened", "weights_only=False")
    assert not mark.exists()
