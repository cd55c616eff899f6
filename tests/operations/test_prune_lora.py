"""Adapters of pruned deltas, as PEFT opens them: base + L in the modules that have a low-rank part."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from operation_calls import Tensors, save, tuned
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lorsmerge_cli import delta, prune
from lorsmerge_cli.deltas.file import DeltaFile
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.operations.prune.lora import open_low_rank, write_lora

pytestmark = pytest.mark.filterwarnings(
    # peft tells of a module that is not what fan_in_fan_out says, and sets it right
    "ignore:fan_in_fan_out is set to:UserWarning",
    "ignore:.*is_gradient_checkpointing:FutureWarning",
)


def adapter_of(base: Tensors, folder: Path, **pruning: object) -> dict[str, torch.Tensor]:
    """Write the adapter of a fine-tune into `adapter`, and return base + L by hand."""
    save(folder / "base.safetensors", base)
    save(folder / "tuned.safetensors", tuned(base, step=0.05))
    delta(folder / "base.safetensors", folder / "tuned.safetensors", folder / "x.delta")
    prune(folder / "x.delta", folder / "p.delta", svp=0.3, **pruning)
    file = open_low_rank(folder / "p.delta")
    write_lora(file, folder / "adapter", force=False, progress=lambda done, total: None)
    stored = load_file(folder / "p.delta")
    return {
        name: base[name] + stored[f"{name}.low_rank.left"] @ stored[f"{name}.low_rank.right"]
        if f"{name}.low_rank.left" in stored
        else base[name]
        for name in base
    }


def as_peft_opens_it(model: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*keys")
        opened = PeftModel.from_pretrained(model, folder / "adapter")
    return opened.merge_and_unload().state_dict()


def targets(folder: Path) -> list[str] | str:
    return json.loads((folder / "adapter" / "adapter_config.json").read_text())["target_modules"]


def agree(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


GPT2 = {
    "all layers": (GPT2LMHeadModel, {}),
    "square ones": (GPT2LMHeadModel, {"exclude": ("*c_attn*", "*mlp*")}),
    "one layer": (GPT2LMHeadModel, {"exclude": ("*.h.1.*",)}),
    # a Linear, which has no name of a linear layer and is in no adapter
    "a head": (GPT2ForSequenceClassification, {"include": ("score.weight",)}),
}


@pytest.mark.parametrize(("model_class", "pruning"), GPT2.values(), ids=GPT2)
def test_of_gpt2_whose_layers_are_conv1d(tmp_path: Path, model_class: type, pruning: dict) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60, n_positions=8, num_labels=20)
    model = model_class(config)
    base = {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    wanted = adapter_of(base, tmp_path, **pruning)
    wanted |= {"score.weight": base["score.weight"]} if "score.weight" in base else {}
    agree(as_peft_opens_it(model, tmp_path), wanted)
    assert sum(not value.equal(base[name]) for name, value in wanted.items()) == len(
        targets(tmp_path)
    )


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 12)
        self.fc2 = nn.Linear(12, 8)


class Nested(nn.Module):
    """A model in which `layers.0.fc1` is the end of `decoder.layers.0.fc1`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList([Layer()])
        self.config = {"model_type": "custom"}


class Mixed(nn.Module):
    """A model with layers of both types, square ones among them."""

    def __init__(self) -> None:
        super().__init__()
        block = {"c_fc": Conv1D(12, 8), "c_proj": Conv1D(8, 8), "down": nn.Linear(12, 8)}
        self.h = nn.ModuleList([nn.ModuleDict(block)])
        self.square = nn.Linear(8, 8)
        self.config = {"model_type": "custom"}


def test_of_layers_of_both_types(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixed()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = adapter_of(base, tmp_path)
    assert len(targets(tmp_path)) == 4
    agree(as_peft_opens_it(model, tmp_path), wanted)


@pytest.mark.parametrize(
    ("exclude", "is_listed"),
    [
        (("decoder.*",), False),
        (("layers.*",), True),
        (("*fc2.weight",), False),
        (("layers.0.*",), True),
    ],
    ids=["the short names", "the long names", "both", "no end of another"],
)
def test_no_other_module_is_targeted(
    tmp_path: Path, exclude: tuple[str, ...], is_listed: bool
) -> None:
    torch.manual_seed(0)
    model = Nested()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = adapter_of(base, tmp_path, exclude=exclude)
    agree(as_peft_opens_it(model, tmp_path), wanted)
    assert isinstance(targets(tmp_path), list) is is_listed


def test_ranks_are_those_of_their_own_modules(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Nested()
    model.decoder.layers[0].fc1 = nn.Linear(30, 40)  # of another rank than layers.0.fc1
    base = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = adapter_of(base, tmp_path)
    agree(as_peft_opens_it(model, tmp_path), wanted)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["rank_pattern"]["^layers.0.fc1"] < config["r"]


def test_a_square_layer_of_an_unknown_type_is_refused(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {
        "h.0.attn.c_proj.weight": torch.randn(8, 8, generator=generator),
        "h.0.attn.c_proj.bias": torch.randn(8, generator=generator),
    }
    with pytest.raises(UsageFault, match=r"Conv1D.*Linear.*c_proj\.weight.*--exclude"):
        adapter_of(base, tmp_path)
    assert DeltaFile(tmp_path / "p.delta").layouts["h.0.attn.c_proj.weight"].rank == 2
    assert not (tmp_path / "adapter").exists()
