"""`prune --as-lora`, opened by PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands_ended import Ended, Shell
from peft import PeftModel
from safetensors.torch import load_file
from speech_models import make_tuned, make_whisper
from transformers import WhisperForConditionalGeneration

from lorsmerge_cli.deltas.file import DeltaFile

# peft of today and transformers of today
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
FC1 = "model.encoder.layers.0.fc1.weight"


@pytest.fixture(scope="module")
def whisper_and_tune(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    make_tuned(make_whisper(folder / "base"), folder / "ft", seed=1)
    return folder


@pytest.fixture
def work(
    whisper_and_tune: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    succeed: Callable[[str], Ended],
) -> Path:
    """The current folder, with base/ and ca.delta in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(whisper_and_tune / "base")
    succeed(f"lorsmerge delta base {whisper_and_tune}/ft -o ca.delta")
    return tmp_path


def low_rank_of(path: Path) -> dict[str, torch.Tensor]:
    """The parts L, multiplied out by hand from what the file stores."""
    stored = load_file(path)
    suffix = ".low_rank.left"
    names = [name.removesuffix(suffix) for name in stored if name.endswith(suffix)]
    return {name: stored[name + suffix] @ stored[f"{name}.low_rank.right"] for name in names}


def peft_weights(adapter: str) -> dict[str, torch.Tensor]:
    model = WhisperForConditionalGeneration.from_pretrained("base")
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def test_peft_makes_base_plus_low_rank_of_it(work: Path, succeed: Callable[[str], Ended]) -> None:
    succeed("lorsmerge prune ca.delta -o ca.lors.delta --svp 0.2 --mp 0.1 --as-lora adapter")
    base = WhisperForConditionalGeneration.from_pretrained("base").state_dict()
    low_rank = low_rank_of(work / "ca.lors.delta")
    assert len(low_rank) == 26
    found = peft_weights("adapter")
    assert found.keys() == base.keys()
    for name, tensor in found.items():
        wanted = base[name] + low_rank.get(name, torch.zeros(()))
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-6)
    assert not found[FC1].equal(base[FC1])


def test_it_says_what_is_left_out(work: Path, succeed: Callable[[str], Ended]) -> None:
    succeed("lorsmerge prune ca.delta -o ca.lors.delta --svp 0.2 --mp 0.1")
    told = succeed("lorsmerge prune ca.lors.delta --as-lora adapter").out
    report = json.loads(succeed("lorsmerge prune ca.lors.delta --as-lora adapter -f --json").out)
    file = DeltaFile(work / "ca.lors.delta")
    total = sum(norm**2 for norm in file.norms.values())
    low_rank = low_rank_of(work / "ca.lors.delta")
    share = sum(float(part.double().square().sum()) for part in low_rank.values()) / total
    rest = sum(norm**2 for name, norm in file.norms.items() if name not in low_rank) / total
    adapter = report["adapter"]
    assert adapter["low_rank"] == pytest.approx(share, rel=1e-5)
    assert adapter["others"] == pytest.approx(rest, rel=1e-5)
    assert (adapter["modules"], adapter["rank"]) == (26, 6)
    assert adapter["sparse_entries"] == sum(file.layouts[name].kept for name in low_rank)
    assert f"{share:.1%} of the delta's energy" in told
    assert f"{adapter['sparse_entries']:,} elements of the sparse part" in told
    assert f"other tensors ({rest:.1%})" in told


def test_ranks_that_differ_from_matrix_to_matrix(
    work: Path, succeed: Callable[[str], Ended]
) -> None:
    succeed("lorsmerge prune ca.delta -o a.delta --svp 0.2 --exclude '*.fc1.weight'")
    succeed("lorsmerge prune a.delta -o b.delta --svp 0.5 "
            "--exclude '*_proj.weight' --exclude '*.fc2.weight' --as-lora adapter")  # fmt: skip
    ranks = {layout.rank for layout in DeltaFile(work / "b.delta").layouts.values()} - {0}
    low_rank = low_rank_of(work / "b.delta")
    assert len(ranks) > 1
    base = load_file(work / "base" / "model.safetensors")
    found = peft_weights("adapter")
    for name, part in low_rank.items():
        torch.testing.assert_close(found[name], base[name] + part, rtol=0, atol=1e-6)


def test_an_adapter_comes_back_as_the_delta_it_was(
    work: Path, succeed: Callable[[str], Ended]
) -> None:
    succeed("lorsmerge prune ca.delta -o ca.svp.delta --svp 0.2 --as-lora adapter")
    succeed("lorsmerge delta base adapter -o again.delta")
    again = low_rank_of(work / "again.delta")
    for name, part in low_rank_of(work / "ca.svp.delta").items():
        torch.testing.assert_close(again[name], part, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("ca.delta", 2, "Give -o for the pruned delta"),
        ("ca.delta --svp 0.1 --as-lora adapter", 2, "Give -o for the pruned delta"),
        ("ca.delta -o x.delta --mp 0.1 --as-lora adapter", 2, "give --svp as well"),
        ("ca.delta --as-lora adapter", 2, "ca.delta has no low-rank part"),
        ("ca.delta -o x.delta --svp 0 --mp 0.1 --as-lora adapter", 2, "no low-rank part"),
        ("ca.delta -o x.delta --svp 1 --mp 0.1 --as-lora adapter", 2, "no low-rank part"),
        ("ca.delta -o x.delta --svp 0.1 --as-lora there", 1, "there exists"),
        ("ca.delta -o x.delta --svp 0.1 --as-lora .", 1, "--as-lora"),
    ],
)
def test_bad_input(work: Path, shell: Shell, arguments: str, code: int, said: str) -> None:
    (work / "there").mkdir()
    (work / "there" / "mine").write_text("kept")
    ended = shell(f"lorsmerge prune {arguments}")
    assert ended.code == code, ended.err
    assert said in " ".join(ended.err.replace("│", "").split()) or said == "--as-lora"
    assert sorted(path.name for path in work.iterdir()) == ["base", "ca.delta", "there"]


def test_shares_are_of_the_delta_that_was_given(
    work: Path, succeed: Callable[[str], Ended]
) -> None:
    line = "lorsmerge prune ca.delta -o ca.svp.delta --svp 0.2 --as-lora adapter --json"
    adapter = json.loads(succeed(line).out)["adapter"]
    total = sum(norm**2 for norm in DeltaFile(work / "ca.delta").norms.values())
    parts = low_rank_of(work / "ca.svp.delta").values()
    share = sum(float(part.double().square().sum()) for part in parts) / total
    assert adapter["low_rank"] == pytest.approx(share, rel=1e-5)
    assert adapter["low_rank"] + adapter["others"] < 0.99  # what pruning dropped is in neither
