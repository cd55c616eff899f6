"""Old PyTorch files are read without running what may be in them; OpenAI's Whispers get our names."""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from speech_models import make_whisper
from transformers import WhisperConfig, WhisperForConditionalGeneration

from lorsmerge_cli.checkpoint.openai_names import from_openai
from lorsmerge_cli.checkpoint.pickled_file import PickledFile
from lorsmerge_cli.checkpoint.reader import Checkpoint
from lorsmerge_cli.errors import UnreadableFile

WEIGHT = torch.arange(6.0).reshape(2, 3)


class Trap:
    """Leaves a mark where it is unpickled by something that runs what it says."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("place", ["among tensors", "in place of them"])
def test_a_booby_trap_is_refused_and_does_not_go_off(
    tmp_path: Path, zipped: bool, place: str
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "theirs.pt"
    content = {"a": WEIGHT, "b": Trap(mark)} if place == "among tensors" else Trap(mark)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnreadableFile, match=r"was not opened.*weights_only=False"):
        Checkpoint(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert mark.exists()


def test_a_plain_pickle_is_not_run_either(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "theirs.bin"
    path.write_bytes(pickle.dumps(Trap(mark), protocol=2))
    with pytest.raises(UnreadableFile):
        Checkpoint(path)
    assert not mark.exists()


def test_a_whole_module_is_refused_with_what_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "whisper.pt"
    torch.save(torch.nn.Linear(2, 3), path)
    with pytest.raises(UnreadableFile, match=r"torch\.nn\.modules\.linear\.Linear") as caught:
        Checkpoint(path)
    remedy = caught.value.remedy
    assert f"model = torch.load('{path}', weights_only=False)" in remedy
    assert "model.save_pretrained('whisper')" in remedy


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_a_state_dict_is_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.bin"
    state = OrderedDict(
        a=WEIGHT, b=torch.nn.Parameter(WEIGHT.T), c=torch.tensor([3], dtype=torch.int64)
    )
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    file = PickledFile(path)
    assert {name: (spec.shape, spec.dtype) for name, spec in file.specs.items()} == {
        "a": ((2, 3), torch.float32), "b": ((3, 2), torch.float32), "c": ((1,), torch.int64),
    }  # fmt: skip
    assert torch.equal(file.read("a"), WEIGHT)
    read = file.read("b")  # a transposed view is laid out anew, and asks for no gradient
    assert torch.equal(read, WEIGHT.T)
    assert read.is_contiguous()
    assert not read.requires_grad


def test_tensors_are_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    torch.save({"a": torch.zeros(1 << 20)}, path)
    file = PickledFile(path)
    with path.open("r+b") as handle:  # what is written later shows through the map
        raw = handle.read()
        handle.seek(raw.index(bytes(1 << 20)))
        handle.write(b"\0\0\x80?" * 1000)
    assert file.read("a").sum() > 100


CONTENTS = {
    "a list": ([1, 2], "list"),
    "a tensor": (torch.ones(2), "Tensor"),
    "a training state": ({"epoch": 3, "model": {"a": torch.ones(2)}}, "'epoch', 'model'"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "sparse"),
}


@pytest.mark.parametrize(("content", "words"), CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_state_dict_is_named(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UnreadableFile, match=words) as caught:
        Checkpoint(tmp_path / "x.pt")
    assert caught.value.remedy


@pytest.mark.parametrize("damage", ["cut", "no zip"])
def test_a_damaged_one_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(1000)}, path)
    raw = path.read_bytes()
    path.write_bytes(raw[:-300] if damage == "cut" else raw[:4] + bytes(100))
    with pytest.raises(UnreadableFile, match=rf"{path}.*bytes") as caught:
        Checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1


# --- OpenAI's Whispers ------------------------------------------------------------------------

DIMS = {
    "n_mels": 80, "n_vocab": 120, "n_audio_ctx": 30, "n_audio_state": 32, "n_audio_head": 4,
    "n_audio_layer": 2, "n_text_ctx": 16, "n_text_state": 32, "n_text_head": 4, "n_text_layer": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `.pt` as OpenAI publishes them, of random weights, made by OpenAI's own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whisper = pytest.importorskip("whisper")
    torch.manual_seed(0)
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**DIMS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("openai") / "tiny.pt"
    torch.save({"dims": asdict(model.dims), "model_state_dict": model.state_dict()}, path)
    return path


def test_a_whisper_of_openai_computes_the_same_here(openai: Path) -> None:
    import whisper

    checkpoint = Checkpoint(openai)
    config = WhisperConfig(
        num_mel_bins=DIMS["n_mels"], vocab_size=DIMS["n_vocab"], d_model=DIMS["n_text_state"],
        max_source_positions=DIMS["n_audio_ctx"], max_target_positions=DIMS["n_text_ctx"],
        encoder_layers=DIMS["n_audio_layer"], decoder_layers=DIMS["n_text_layer"],
        encoder_attention_heads=DIMS["n_audio_head"], decoder_attention_heads=DIMS["n_text_head"],
        encoder_ffn_dim=128, decoder_ffn_dim=128, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        decoder_start_token_id=1,
    )  # fmt: skip
    ours = WhisperForConditionalGeneration(config).eval()
    state = {name: checkpoint.read(name) for name in checkpoint.specs}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["proj_out.weight"], [])
    ours.tie_weights()
    theirs = whisper.load_model(str(openai), device="cpu")
    mel = torch.randn(2, 80, 60, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[1, 5, 9, 11], [1, 7, 2, 3]])
    with torch.no_grad():
        expected = theirs(mel, tokens)
        logits = ours(input_features=mel, decoder_input_ids=tokens).logits
    assert expected.std() > 0.03
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_its_dimensions_are_there(openai: Path) -> None:
    assert PickledFile(openai).dims == DIMS


def test_every_name_of_transformers_has_one_of_openais(tmp_path: Path) -> None:
    names = set(load_file(make_whisper(tmp_path / "w") / "model.safetensors"))
    theirs = {
        "encoder.conv1.weight", "encoder.positional_embedding", "encoder.ln_post.bias",
        "encoder.blocks.0.attn.query.weight", "encoder.blocks.0.attn_ln.weight",
        "encoder.blocks.0.mlp.0.weight", "encoder.blocks.0.mlp.2.bias", "encoder.blocks.0.mlp_ln.bias",
        "decoder.token_embedding.weight", "decoder.positional_embedding", "decoder.ln.weight",
        "decoder.blocks.1.cross_attn.key.weight", "decoder.blocks.1.cross_attn.out.bias",
        "decoder.blocks.1.cross_attn_ln.bias", "decoder.blocks.1.attn.value.bias",
    }  # fmt: skip
    assert {from_openai(name) for name in theirs} <= names
    assert len({from_openai(name) for name in theirs}) == len(theirs)
