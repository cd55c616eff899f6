"""What a copy of a model folder gets beside its weights, and what links in it may lead to."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from speech_models import make_whisper

from lorsmerge_cli.checkpoint import companions
from lorsmerge_cli.checkpoint.companions import find_companions
from lorsmerge_cli.checkpoint.model_files import companion_files
from lorsmerge_cli.checkpoint.model_writer import (
    check_companions,
    copy_companions,
    notes_on_code,
)
from lorsmerge_cli.errors import LorsmergeError

WHISPER_SMALL = (  # the files of OpenAI's repository on the Hub
    ".gitattributes", "README.md", "added_tokens.json", "config.json", "flax_model.msgpack",
    "generation_config.json", "merges.txt", "model.safetensors", "normalizer.json",
    "preprocessor_config.json", "pytorch_model.bin", "special_tokens_map.json", "tf_model.h5",
    "tokenizer.json", "tokenizer_config.json", "vocab.json",
)  # fmt: skip
NOT_COPIED = {".gitattributes", "README.md", "flax_model.msgpack", "model.safetensors",
              "pytorch_model.bin", "tf_model.h5"}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with a config and a vocabulary, and a secret beside the folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "whisper"}')
    (folder / "vocab.json").write_text("{}")
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    return folder


def copied(folder: Path, target: Path) -> set[str]:
    target.mkdir()
    copy_companions(folder, target, torch.float32)
    assert not any(path.is_symlink() for path in target.rglob("*"))
    return {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}


# the list


def test_what_belongs_to_a_whisper_is_on_the_list() -> None:
    assert set(companion_files(WHISPER_SMALL)) == set(WHISPER_SMALL) - NOT_COPIED


@pytest.mark.parametrize(
    "name",
    ["sentencepiece.bpe.model", "source.spm", "spiece.model", "tokenizer.model", "tokenizer.model.v3",
     "tekken.json", "multilingual.tiktoken", "vocab.txt", "vocab.bpe", "chat_template.jinja",
     "chat_template.json", "additional_chat_templates/tools.jinja", "processor_config.json",
     "feature_extractor_config.json", "LICENSE", "LICENSE.txt", "LICENCE.md", "license.txt", "NOTICE",
     "COPYING"],
)  # fmt: skip
def test_what_else_transformers_reads_is_on_the_list(name: str) -> None:
    assert companion_files([name]) == [name]


@pytest.mark.parametrize(
    "name",
    ["adapter_config.json", "adapter_model.safetensors", "model.safetensors", "x.delta", "corpus.tar",
     ".env", ".git/config", "notes.txt", "run.py", "modeling_x.py", "README.md", "run.json",
     "lorsmerge.json", "trainer_state.json", "optimizer.pt", "id_rsa", "onnx/config.json",
     "merged/config.json", "additional_chat_templates/x/y.jinja", "additional_chat_templates/x.py",
     "sub/vocab.json", "x/y.tiktoken", "results.json"],
)  # fmt: skip
def test_nothing_else_is(name: str) -> None:
    assert companion_files([name]) == []


@pytest.mark.parametrize("fast", [True, False])
def test_all_that_transformers_saves_is_copied(tmp_path: Path, fast: bool) -> None:
    base = make_whisper(tmp_path / "base")
    if not fast:
        from transformers import WhisperProcessor

        processor = WhisperProcessor.from_pretrained(base)
        processor.tokenizer.save_vocabulary(str(base))
        processor.feature_extractor.save_pretrained(base)
    wanted = {path.name for path in base.iterdir()} - {"model.safetensors"}
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= wanted
    assert copied(base, tmp_path / "copy") == wanted


def test_the_demos_base_is_copied_whole(tmp_path: Path) -> None:
    base = Path(__file__).parents[2] / "examples" / "demo" / "bundle" / "base"
    wanted = {path.name for path in base.iterdir() if path.suffix != ".safetensors"}
    assert copied(base, tmp_path / "copy") == wanted - {"README.md"}


def test_an_adapter_beside_the_weights_stays_behind(model: Path, tmp_path: Path) -> None:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "other/model"}')
    (model / "adapter_model.safetensors").write_text("weights")
    assert copied(model, tmp_path / "copy") == {"config.json", "vocab.json"}


def test_an_output_inside_the_base_is_not_copied_into_the_next(model: Path) -> None:
    (model / "merged").mkdir()
    for _ in range(3):
        copy_companions(model, model / "merged", torch.float32)
    assert {path.name for path in (model / "merged").rglob("*")} == {"config.json", "vocab.json"}


def test_the_templates_folder_is_copied(model: Path, tmp_path: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tools.jinja").write_text("{{ x }}")
    (model / "additional_chat_templates" / "notes.txt").write_text("")
    assert copied(model, tmp_path / "copy") == {
        "config.json", "vocab.json", "additional_chat_templates/tools.jinja",
    }  # fmt: skip


# code


def test_code_is_copied_where_a_config_names_it(model: Path, tmp_path: Path) -> None:
    for name, text in {
        "modeling_x.py": "from .layers_x import A\nfrom .base import (\n  B)\nimport torch\nfrom . import q",
        "layers_x.py": "import .deep_x\nfrom .gone import C", "deep_x.py": "", "base.py": "",
        "tokenization_x.py": "", "other.py": "import os", "setup.py": "",
    }.items():  # fmt: skip
        (model / name).write_text(text)
    (model / "config.json").write_text(json.dumps({"auto_map": {
        "AutoConfig": "other/repo--configuration_x.Config", "AutoModel": "modeling_x.Model",
        "AutoX": "../outside.X", "AutoY": "/etc/passwd.X", "AutoZ": 3, "AutoW": "absent.W"}}))  # fmt: skip
    (model / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_x.Slow", None]}})
    )
    code = {"modeling_x.py", "layers_x.py", "deep_x.py", "base.py", "tokenization_x.py"}
    assert copied(model, tmp_path / "copy") == code | {
        "config.json", "vocab.json", "tokenizer_config.json",
    }  # fmt: skip
    (note,) = notes_on_code(model)
    assert "'base.py', 'deep_x.py', 'layers_x.py' and 2 more" in note
    assert "trust_remote_code" in note


@pytest.mark.parametrize("auto_map", [None, 3, "x", [], ["a.B"], {"A": {}}, {"A": [["x.Y"]]}])
def test_an_auto_map_of_another_form_names_nothing(model: Path, auto_map: object) -> None:
    (model / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    (model / "x.py").write_text("")
    assert find_companions(model).code == ()
    assert notes_on_code(model) == []


# links and what is no file


def test_links_inside_the_folder_are_followed(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").symlink_to("vocab.json")
    (model / "merges.txt").symlink_to(model.resolve() / "tokenizer.json")
    assert copied(model, tmp_path / "copy") >= {"tokenizer.json", "merges.txt"}


def test_a_folder_that_is_a_link_itself_is_one(model: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(model)
    assert copied(tmp_path / "base", tmp_path / "copy") == {"config.json", "vocab.json"}


def snapshot(cache: Path) -> Path:
    """A model as huggingface_hub keeps it: a folder of links to blobs."""
    repo = cache / "models--org--name"
    folder = repo / "snapshots" / ("0" * 40)
    (folder / "additional_chat_templates").mkdir(parents=True)
    (repo / "blobs").mkdir()
    for name in ("config.json", "vocab.json", "additional_chat_templates/x.jinja"):
        blob = repo / "blobs" / name.replace("/", "-")
        blob.write_text("{}")
        (folder / name).symlink_to(os.path.relpath(blob, (folder / name).parent))
    return folder


def test_a_snapshot_of_the_hub_is_copied_as_files(tmp_path: Path) -> None:
    folder = snapshot(tmp_path / "cache")
    wanted = {"config.json", "vocab.json", "additional_chat_templates/x.jinja"}
    assert copied(folder, tmp_path / "copy") == wanted
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    linked = tmp_path / "link" / folder.relative_to(tmp_path / "cache")
    assert copied(linked, tmp_path / "second") == wanted


def test_a_blob_that_leads_out_of_the_cache_is_refused(tmp_path: Path) -> None:
    folder = snapshot(tmp_path / "cache")
    (tmp_path / "id_rsa").write_text("PRIVATE KEY")
    blobs = folder.parents[1] / "blobs"
    (blobs / "vocab.json").unlink()
    (blobs / "vocab.json").symlink_to(tmp_path / "id_rsa")
    assert "leads out of its folder" in str(check_companions(folder)[0])
    blobs.rename(tmp_path / "away")
    blobs.symlink_to(tmp_path)  # so that ../../blobs/vocab.json is any file of that name
    assert check_companions(folder)


def linked_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def chain(path: Path) -> None:
    (path.parent / "second").symlink_to("../id_rsa")
    path.symlink_to("second")


def through_a_folder(path: Path) -> None:
    (path.parent / "up").symlink_to("..")
    path.symlink_to("up/id_rsa")


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


ODD = {
    "a link to a key": (linked_to("../id_rsa"), "leads out of its folder"),
    "an absolute link": (linked_to("/etc/passwd"), "leads out of its folder"),
    "a chain of links": (chain, "leads out of its folder"),
    "a link through a folder": (through_a_folder, "leads out of its folder"),
    "a device": (linked_to("/dev/zero"), "leads out of its folder"),
    "a process's files": (linked_to("/proc/self/environ"), "leads out of its folder"),
    "a dangling link": (linked_to("nowhere"), "cannot be read"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "cannot be read"),
    "a FIFO": (os.mkfifo, "is a FIFO"),
    "a link to a FIFO": (lambda path: (os.mkfifo(path.parent / "f"), path.symlink_to("f")), "is a FIFO"),
    "a socket": (listening, "is a socket"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "said"), ODD.values(), ids=ODD)
@pytest.mark.parametrize("name", ["tokenizer.json", "LICENSE"])
def test_what_is_no_file_of_the_folder_is_refused_by_name(
    model: Path, tmp_path: Path, make: Callable[[Path], object], said: str, name: str
) -> None:
    make(model / name)
    (fault,) = check_companions(model)
    assert f"{model / name} " in str(fault)
    assert said in str(fault)
    target = tmp_path / "copy"
    target.mkdir()
    with pytest.raises(LorsmergeError):
        copy_companions(model, target, torch.float32)
    assert list(target.iterdir()) == []


def test_a_link_out_of_the_templates_folder_is_refused(model: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "x.jinja").symlink_to("../../id_rsa")
    (fault,) = check_companions(model)
    assert "x.jinja is a link that leads out of its folder" in str(fault)


def test_what_is_not_on_the_list_is_in_nobodys_way(model: Path, tmp_path: Path) -> None:
    os.mkfifo(model / "fifo")
    (model / "loop").symlink_to(".")
    (model / "home").symlink_to("..")
    (model / "dangling").symlink_to("nowhere")
    (model / "key").symlink_to("../id_rsa")
    (model / "LICENSES").mkdir()
    (model / "additional_chat_templates").symlink_to("..")
    (tmp_path / "x.jinja").write_text("not ours")
    assert check_companions(model) == []
    assert copied(model, tmp_path / "copy") == {"config.json", "vocab.json"}


def test_a_checkpoint_of_a_trainer_inherits_no_link_out(model: Path, tmp_path: Path) -> None:
    checkpoint = model / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    assert copied(checkpoint, tmp_path / "copy") == {"config.json", "vocab.json"}
    (model / "tokenizer.json").symlink_to("../id_rsa")
    assert "leads out of its folder" in str(check_companions(checkpoint)[0])


# size and content


def test_more_bytes_than_a_model_has_are_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "tokenizer.json").write_bytes(b"x" * 5000)
    (model / "corpus.tar").write_bytes(b"x" * 50_000)
    assert find_companions(model).size == 5000 + 2 + len('{"model_type": "whisper"}')
    monkeypatch.setattr(companions, "MOST", 4000)
    (fault,) = check_companions(model)
    assert "have 5,027 bytes ('tokenizer.json'" in str(fault)


def test_a_sparse_file_is_as_large_as_it_reads(model: Path) -> None:
    with (model / "tokenizer.json").open("wb") as file:
        file.truncate(300 << 20)
    assert "at most 256 MiB" in str(check_companions(model)[0])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "\x00", "[" * 100_000, '{"a":' * 950 + "1" + "}" * 950]
)  # fmt: skip
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_config_that_could_not_be_written_again_is_told(
    model: Path, name: str, text: str
) -> None:
    (model / name).write_text(text)
    faults = check_companions(model)
    if faults:
        assert f"{model / name} is no JSON config" in str(faults[0])
    else:  # as deep as this Python reads and writes
        assert text.startswith('{"a":{')


def test_there_is_no_folder(tmp_path: Path) -> None:
    assert check_companions(tmp_path / "absent") == []
    (tmp_path / "file").touch()
    assert check_companions(tmp_path / "file") == []


def test_a_copys_mode_has_no_set_uid_and_can_be_written(model: Path, tmp_path: Path) -> None:
    (model / "vocab.json").chmod(0o4555)
    copied(model, tmp_path / "copy")
    assert (tmp_path / "copy" / "vocab.json").stat().st_mode & 0o7777 == 0o755
