"""The commands of the README, on real (small) Whisper folders that transformers wrote."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

from lorsmerge_cli.outputs import MANIFEST

LITTER = {
    "README.md": "# A base",
    "trainer_state.json": "{}",
    "training_args.bin": "state",
    "optimizer.pt": "state",
    "pytorch_model.bin": "weights",
    "rng_state.pth": "state",
    "events.out.tfevents.1": "log",
}
FORCED = [[1, 313], [2, 402]]
TENSOR = "model.encoder.layers.0.self_attn.q_proj.weight"
MERGE = "lorsmerge merge base/ ca_asr.delta de_st.delta "


@pytest.fixture(scope="session")
def whisper_files(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The names that the documentation uses; the base carries what a fine-tune would have left."""
    folder = tmp_path_factory.mktemp("whisper")
    shutil.copytree(models / "base", folder / "openai-whisper-small")
    shutil.copytree(models / "base", folder / "base")
    shutil.copy(models / "base" / "model.safetensors", folder / "base.safetensors")
    shutil.copytree(models / "ca", folder / "my-finetune-ca")
    shutil.copytree(models / "de", folder / "my-finetune-de")
    for name, text in LITTER.items():
        (folder / "base" / name).write_text(text)
    (folder / "base" / "checkpoint-100").mkdir()
    (folder / "base" / "checkpoint-100" / "config.json").write_text("{}")
    for name, forced in (
        ("config.json", {"forced_decoder_ids": FORCED, "dtype": "float16"}),
        (
            "generation_config.json",
            {"forced_decoder_ids": FORCED, "language": "ca", "task": "transcribe"},
        ),
    ):
        file = folder / "base" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | forced))
    return folder


@pytest.fixture
def whisper(
    whisper_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, succeed: Callable
) -> Path:
    """The current folder, with ca_asr.delta and de_st.delta in it."""
    folder = tmp_path / "work"
    shutil.copytree(whisper_files, folder)
    monkeypatch.chdir(folder)
    succeed(
        "lorsmerge delta openai-whisper-small/ my-finetune-ca/ -o ca_asr.delta --task asr --language ca"
    )
    succeed(
        "lorsmerge delta base.safetensors my-finetune-de -o de_st.delta --task st --language de"
    )
    return folder


def weights(path: str) -> dict[str, torch.Tensor]:
    return load_file(path)


def same_weights(first: str, second: str) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].numpy().tobytes() == b[name].numpy().tobytes()
        for name in a
    )


def test_a_delta_is_the_fine_tune_less_the_base(whisper: Path) -> None:
    base = weights("base.safetensors")[TENSOR]
    finetuned = weights("my-finetune-ca/model.safetensors")[TENSOR]
    with safe_open("ca_asr.delta", "pt") as file:
        assert torch.equal(file.get_tensor(TENSOR), finetuned - base)
        metadata = file.metadata()
    assert (metadata["lorsmerge.task"], metadata["lorsmerge.language"]) == ("asr", "ca")
    assert json.loads(metadata["lorsmerge.history"]) == [
        "lorsmerge delta openai-whisper-small/ my-finetune-ca/ -o ca_asr.delta --task asr "
        "--language ca"
    ]


def test_prune_makes_a_smaller_delta_and_says_what_it_keeps(
    whisper: Path, succeed: Callable
) -> None:
    ended = succeed("lorsmerge prune ca_asr.delta -o ca_asr.lors.delta --svp 0.05 --mp 0.4")
    assert Path("ca_asr.lors.delta").stat().st_size < Path("ca_asr.delta").stat().st_size
    assert "energy kept" in ended.out
    assert "fc1.weight" in ended.out
    assert "all pruned" in ended.out


def test_prune_in_bfloat16_halves_the_pruned_part(whisper: Path, succeed: Callable) -> None:
    line = "lorsmerge prune ca_asr.delta --svp 0.03 --mp 0.4 --json -o "
    wide = json.loads(succeed(line + "wide.delta").out)["pruned"]["nbytes"]
    half = json.loads(succeed(line + "half.delta --dtype bfloat16").out)["pruned"]["nbytes"]
    dense = 4 * json.loads(succeed(line + "third.delta").out)["pruned"]["entries"]
    # masks of one bit an entry do not shrink with the dtype
    assert half == pytest.approx(wide / 2 + dense / 64, rel=0.01)


def test_the_first_line_of_the_readme_writes_merged_safetensors(
    whisper: Path, succeed: Callable
) -> None:
    before = set(whisper.iterdir())
    ended = succeed("lorsmerge merge base.safetensors ca_asr.delta de_st.delta --svp 0.03 --mp 0.4")
    assert {path.name for path in set(whisper.iterdir()) - before} == {"merged.safetensors"}
    base, merged = weights("base.safetensors"), weights("merged.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in base.items()} == {
        name: (t.shape, t.dtype) for name, t in merged.items()
    }
    # a norm is not pruned, so that its merge is the plain formula
    norm = "model.encoder.layers.0.final_layer_norm.weight"
    deltas = [
        weights(f"my-finetune-{c}/model.safetensors")[norm] - base[norm] for c in ("ca", "de")
    ]
    expected = base[norm].double() + 0.15 * sum(delta.double() for delta in deltas)
    assert torch.equal(merged[norm], expected.float())
    assert not torch.equal(merged[TENSOR], base[TENSOR])
    with safe_open("merged.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["lorsmerge"])["recipe"]["method"] == "lors"
    for said in ("32 tensors pruned", "57 merged unpruned", "lambda", "0.3", "lost to rounding"):
        assert said in ended.out


@pytest.mark.parametrize("ratios", ["--svp 0.03 --mp 0.4", "--svp 0.1", "--mp 0.25"])
def test_prune_then_merge_is_merge_with_the_ratios(
    whisper: Path, succeed: Callable, ratios: str
) -> None:
    succeed(f"lorsmerge prune ca_asr.delta -o ca.lors.delta {ratios}")
    succeed(f"lorsmerge prune de_st.delta -o de.lors.delta {ratios}")
    succeed("lorsmerge merge base.safetensors ca.lors.delta de.lors.delta -o two.safetensors")
    succeed(
        f"lorsmerge merge base.safetensors ca_asr.delta de_st.delta {ratios} -o one.safetensors"
    )
    assert same_weights("one.safetensors", "two.safetensors")


def test_a_checkpoint_may_stand_where_a_delta_stands(whisper: Path, succeed: Callable) -> None:
    succeed("lorsmerge merge base.safetensors ca_asr.delta de_st.delta --svp 0.03 --mp 0.4")
    succeed(
        "lorsmerge merge base.safetensors my-finetune-ca/ my-finetune-de/ --svp 0.03 --mp 0.4 "
        "-o onfly.safetensors"
    )
    assert same_weights("merged.safetensors", "onfly.safetensors")


def test_wa_is_the_mean_of_the_fine_tunes(whisper: Path, succeed: Callable) -> None:
    succeed(
        "lorsmerge merge base.safetensors my-finetune-ca/ my-finetune-de/ --method wa -o wa.safetensors"
    )
    ca, de = (weights(f"my-finetune-{name}/model.safetensors")[TENSOR] for name in ("ca", "de"))
    torch.testing.assert_close(weights("wa.safetensors")[TENSOR], (ca + de) / 2, rtol=0, atol=1e-8)


def test_the_result_does_not_depend_on_the_number_of_threads(
    whisper: Path, succeed: Callable
) -> None:
    line = "lorsmerge merge base.safetensors ca_asr.delta de_st.delta --svp 0.03 --mp 0.4 "
    succeed(line + "--threads 1 -o one.safetensors")
    succeed(line + "--threads 3 -o three.safetensors")
    assert Path("one.safetensors").read_bytes() == Path("three.safetensors").read_bytes()


def test_settings_of_each_delta_are_recorded(whisper: Path, succeed: Callable) -> None:
    succeed(
        "lorsmerge merge base/ ca_asr.delta:svp=0.05,mp=0.4 de_st.delta:svp=0.03,mp=0.6 "
        "--scale 0.15 -o merged/"
    )
    made = json.loads(Path("merged/lorsmerge.json").read_text())
    assert made["recipe"]["deltas"] == [
        {"path": "ca_asr.delta", "svp": 0.05, "mp": 0.4, "scale": 0.15},
        {"path": "de_st.delta", "svp": 0.03, "mp": 0.6, "scale": 0.15},
    ]
    assert [delta["language"] for delta in made["deltas"]] == ["ca", "de"]
    assert set(made["versions"]) >= {"python", "torch"}


def test_settings_of_each_delta_are_used(whisper: Path, succeed: Callable) -> None:
    line = "lorsmerge merge base.safetensors "
    succeed(
        line + "ca_asr.delta:svp=0.05,mp=0.4 de_st.delta:scale=0 -o with.safetensors --svp 0.03"
    )
    succeed(line + "ca_asr.delta --svp 0.05 --mp 0.4 -o without.safetensors")
    assert same_weights("with.safetensors", "without.safetensors")


def test_a_toml_recipe_says_what_the_options_say(whisper: Path, succeed: Callable) -> None:
    Path("paper-asr.toml").write_text(
        'base = "base/"\nsvp = 0.03\nmp = 0.4\nscale = 0.2\n'
        '[[deltas]]\npath = "ca_asr.delta"\nsvp = 0.05\n[[deltas]]\npath = "de_st.delta"\n'
    )
    succeed("lorsmerge merge --recipe paper-asr.toml -o merged/")
    succeed(
        "lorsmerge merge base.safetensors ca_asr.delta:svp=0.05 de_st.delta --svp 0.03 --mp 0.4 "
        "--scale 0.2 -o options.safetensors"
    )
    assert same_weights("merged/model.safetensors", "options.safetensors")


@pytest.mark.parametrize(
    ("settings", "again"),
    [
        ("--svp 0.03 --mp 0.4 --save-recipe saved.toml", "saved.toml"),
        ("--svp 0.03 --mp 0.4 --dtype bfloat16 --exclude *.fc1.weight", "first/lorsmerge.json"),
        ("--method wa", "first/lorsmerge.json"),
        ("--save-recipe saved.toml --scale -0.5", "saved.toml"),
        (
            "--mp 0.25 --include model.decoder.embed_tokens.weight --save-recipe saved.toml",
            "saved.toml",
        ),
    ],
)
def test_a_saved_recipe_makes_the_same_bytes_again(
    whisper: Path, succeed: Callable, contents: Callable, settings: str, again: str
) -> None:
    succeed(MERGE + settings + " -o first")
    succeed(f"lorsmerge merge --recipe {again} -o second")
    assert contents(whisper / "first") == contents(whisper / "second")


def test_a_recorded_merge_is_not_repeated_with_other_files(
    whisper: Path, succeed: Callable, shell: Callable
) -> None:
    succeed(MERGE + "--svp 0.03 -o first")
    shutil.copy("de_st.delta", "ca_asr.delta")
    ended = shell("lorsmerge merge --recipe first/lorsmerge.json -o second")
    assert ended.code == 1
    assert "ca_asr.delta is not the file" in ended.err
    assert not Path("second").exists()


def test_a_folder_gets_what_belongs_to_the_model_and_nothing_else(
    whisper: Path, succeed: Callable
) -> None:
    succeed(MERGE + "--svp 0.03 --mp 0.4 -o merged/")
    model = {path.name for path in Path("openai-whisper-small").iterdir()}
    assert {path.name for path in Path("merged").iterdir()} == model | {
        "lorsmerge.json",
        MANIFEST,
    }


@pytest.mark.parametrize(("option", "dtype"), [("", "float32"), ("--dtype bfloat16", "bfloat16")])
def test_the_config_says_the_dtype_that_the_weights_have(
    whisper: Path, succeed: Callable, option: str, dtype: str
) -> None:
    succeed(MERGE + f"--svp 0.03 --mp 0.4 {option} -o merged/")
    assert json.loads(Path("merged/config.json").read_text())["dtype"] == dtype
    assert weights("merged/model.safetensors")[TENSOR].dtype == getattr(torch, dtype)


def test_a_forced_language_and_task_are_gone_and_the_rest_is_kept(
    whisper: Path, succeed: Callable
) -> None:
    succeed(MERGE + "--svp 0.03 --mp 0.4 -o merged/")
    for name in ("config.json", "generation_config.json"):
        clean = json.loads((Path("openai-whisper-small") / name).read_text())
        assert json.loads((Path("merged") / name).read_text()) == clean


def test_transformers_opens_a_merged_folder_and_generates(whisper: Path, succeed: Callable) -> None:
    succeed(MERGE + "--svp 0.03 --mp 0.4 -o merged/")
    model, loading = WhisperForConditionalGeneration.from_pretrained(
        "merged", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    assert model.proj_out.weight is model.get_decoder().embed_tokens.weight
    merged = weights("merged/model.safetensors")
    assert torch.equal(model.state_dict()[TENSOR], merged[TENSOR])
    speech = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
    processor = WhisperProcessor.from_pretrained("merged")
    features = processor(speech, sampling_rate=16000, return_tensors="pt").input_features
    tokens = model.generate(features, language="de", task="translate", max_new_tokens=4)
    assert tokens.shape[0] == 1
    assert tokens.shape[1] > 1


def test_transformers_pipeline_opens_a_merged_folder(whisper: Path, succeed: Callable) -> None:
    succeed(MERGE + "--svp 0.03 --mp 0.4 -o merged/")
    recognise = pipeline("automatic-speech-recognition", model="merged", device="cpu")
    speech = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
    heard = recognise(speech, generate_kwargs={"max_new_tokens": 4, "language": "ca"})
    assert isinstance(heard["text"], str)


def test_a_sharded_folder_opens_and_merges_like_a_single_file(
    whisper: Path, succeed: Callable
) -> None:
    succeed(MERGE + "--svp 0.03 --mp 0.4 -o merged/ --max-shard-size 0.5MB")
    assert len(list(Path("merged").glob("model-*-of-*.safetensors"))) > 2
    model = WhisperForConditionalGeneration.from_pretrained("merged")
    succeed(MERGE + "--svp 0.03 --mp 0.4 -o single/")
    single = weights("single/model.safetensors")
    assert all(torch.equal(model.state_dict()[name], single[name]) for name in single)
    assert "checkpoint, 89 tensors" in succeed("lorsmerge inspect merged/").out
    succeed("lorsmerge merge merged/ my-finetune-ca/:scale=1 -o x.safetensors")
    finetuned = weights("my-finetune-ca/model.safetensors")
    torch.testing.assert_close(weights("x.safetensors")[TENSOR], finetuned[TENSOR])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lorsmerge inspect base.safetensors", ["89 tensors", "encoder", "decoder", "float32"]),
        ("lorsmerge inspect base/", ["89 tensors", "self_attn.q_proj.weight", "64 x 64"]),
        (
            "lorsmerge inspect ca_asr.delta",
            ["delta (ca asr)", "top 3%", "made by: lorsmerge delta"],
        ),
        ("lorsmerge inspect ca_asr.delta --no-spectra", ["delta (ca asr)", "norm"]),
        ("lorsmerge inspect pruned.delta", ["32 lors", "57 dense", "svp 0.05", "lorsmerge prune"]),
        ("lorsmerge inspect ca_asr.delta de_st.delta", ["cosine", "sign conflicts"]),
        ("lorsmerge inspect base/ pruned.delta ca_asr.delta", ["checkpoint", "cosine"]),
    ],
)
def test_inspect_tells_what_a_file_is(
    whisper: Path, succeed: Callable, line: str, said: list[str]
) -> None:
    succeed("lorsmerge prune ca_asr.delta -o pruned.delta --svp 0.05 --mp 0.4")
    ended = succeed(line)
    assert [words for words in said if words not in ended.out] == []


@pytest.mark.slow
def test_inspect_draws_a_picture(whisper: Path, succeed: Callable) -> None:
    pytest.importorskip("matplotlib")
    succeed("lorsmerge inspect ca_asr.delta de_st.delta --plot out.png")
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")


def test_force_replaces_a_folder_and_leaves_no_old_shard(whisper: Path, succeed: Callable) -> None:
    succeed(MERGE + "-o merged/ --max-shard-size 0.5MB")
    succeed(MERGE + "-o merged/ --force")
    assert [path.name for path in Path("merged").glob("*.safetensors*")] == ["model.safetensors"]
    assert not [path for path in whisper.iterdir() if path.name.startswith(".")]


def test_force_refuses_a_folder_that_holds_what_is_the_users(
    tiny: Path, succeed: Callable, shell: Callable
) -> None:
    succeed("lorsmerge merge base/ ca.delta -o merged/")
    before = Path("merged/model.safetensors").read_bytes()
    Path("merged/notes.txt").write_text("mine")
    Path("merged/plots").mkdir()
    Path("merged/plots/a.png").write_text("mine")
    ended = shell("lorsmerge merge base/ de.delta -o merged/ --force")
    assert ended.code == 1
    assert "'notes.txt', 'plots/'" in ended.err
    assert Path("merged/model.safetensors").read_bytes() == before
    assert Path("merged/notes.txt").read_text() == "mine"
    assert Path("merged/plots/a.png").read_text() == "mine"


def test_an_output_may_be_a_link_to_a_folder(tiny: Path, succeed: Callable) -> None:
    # on a cluster the folder of results is a link to the large disk
    Path("disk").mkdir()
    os.symlink("disk", "merged")
    for _ in range(2):
        succeed("lorsmerge merge base/ ca.delta -o merged/ --force")
    assert Path("merged").is_symlink()
    assert Path("disk/model.safetensors").is_file()


def test_an_output_may_be_a_link_to_a_file(tiny: Path, succeed: Callable) -> None:
    Path("disk").mkdir()
    Path("disk/x.safetensors").write_text("old")
    os.symlink("disk/x.safetensors", "x.safetensors")
    succeed("lorsmerge merge base/ ca.delta -o x.safetensors --force")
    assert Path("x.safetensors").is_symlink()
    assert load_file("disk/x.safetensors")


def test_the_current_folder_is_not_swapped_under_the_shell(
    tiny: Path, shell: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    ended = shell("lorsmerge merge ../base/ ../ca.delta -o . --force")
    assert ended.code == 1
    assert "Name a folder inside it" in ended.err
    assert list(Path().iterdir()) == []
