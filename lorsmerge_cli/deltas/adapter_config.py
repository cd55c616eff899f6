"""What a PEFT adapter's config says of how its factors become a change of the base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorsmerge_cli.deltas.module_pattern import ModulePattern
from lorsmerge_cli.errors import Mismatch, UnreadableFile
from lorsmerge_cli.inputs import read_json

# Settings that the saved numbers already show, or that only training needs. Any other one that is set
# makes a delta of another form.
HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# Beginnings of training that leave the base as it is; others (PiSSA, OLoRA, CorDA, LoftQ) change it.
PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
DEFAULT_ALPHA = 8.0
LONGEST_SHOWN = 200  # characters of a value in a message
# what each setting may be beside null; the rest is not looked at
TYPES = {
    "peft_type": (str,), "base_model_name_or_path": (str,), "target_modules": (str, list),
    "modules_to_save": (list,), "use_rslora": (bool,), "fan_in_fan_out": (bool,),
    "alpha_pattern": (dict,), "rank_pattern": (dict,),
}  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of a LoRA adapter that its delta depends on.

    Attributes:
        alpha: lora_alpha.
        alphas: patterns of module names, and the alpha of what they match.
        rank_stabilised: whether the scaling is alpha / sqrt(r).
        transposed: whether B @ A is the transpose of a weight whose shape does not tell.
        trained_on: name of the base, empty where it is not recorded.
    """

    alpha: float
    alphas: tuple[tuple[ModulePattern, float], ...]
    rank_stabilised: bool
    transposed: bool
    trained_on: str

    def scaling(self, module: str, rank: int) -> float:
        """What B @ A of a module is multiplied by."""
        matching = (alpha for pattern, alpha in self.alphas if pattern.matches(module))
        return next(matching, self.alpha) / (rank**0.5 if self.rank_stabilised else rank)


def read_adapter_config(path: Path, adapter: Path) -> AdapterConfig:
    """Read `adapter_config.json`.

    Args:
        path: the file.
        adapter: what the user gave, for messages.

    Raises:
        UnreadableFile: it is no such config.
        Mismatch: the adapter is of another kind than plain LoRA.
    """
    try:
        config = read_json(path)
        _check_types(config)
        alpha = _number("lora_alpha", config.get("lora_alpha", DEFAULT_ALPHA))
        alphas = _numbers(config, "alpha_pattern")
    except (OSError, ValueError) as error:
        raise UnreadableFile(
            f"{path} is no adapter config that can be read ({error}).", "Copy or download it again."
        ) from None
    trained_on = config.get("base_model_name_or_path") or ""
    odd = _unlike_lora(config)
    if odd:
        raise Mismatch(
            f"{adapter} is a PEFT adapter of another kind than plain LoRA ({', '.join(odd)}), whose "
            "change of the base is not the product of its factors.",
            _with_peft(trained_on, adapter),
        )
    try:
        patterns = tuple((ModulePattern(text), value) for text, value in alphas.items())
    except ValueError as error:
        raise UnreadableFile(
            f"{path}: alpha_pattern has {error}.", _with_peft(trained_on, adapter)
        ) from None
    return AdapterConfig(
        alpha=alpha,
        alphas=patterns,
        rank_stabilised=bool(config.get("use_rslora")),
        transposed=bool(config.get("fan_in_fan_out")),
        trained_on=trained_on,
    )


def _check_types(config: Any) -> None:
    """Raise ValueError for a setting that is not of the type that PEFT writes."""
    if not isinstance(config, dict):
        raise ValueError(f"an object is needed, and it is a {type(config).__name__}")
    for key, types in TYPES.items():
        value = config.get(key)
        if value is not None and not isinstance(value, types):
            raise ValueError(f"{key} is {_shown(value)}")
    for key in ("target_modules", "modules_to_save"):
        if any(not isinstance(item, str) for item in config.get(key) or ()):
            raise ValueError(f"{key} is {_shown(config[key])}")
    for key, rank in {"r": config.get("r", 8), **(config.get("rank_pattern") or {})}.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"the rank of {_shown(key)} is {_shown(rank)}")


def _numbers(config: Mapping[str, Any], key: str) -> dict[str, float]:
    entries = (config.get(key) or {}).items()
    return {name: _number(f"{key} of {_shown(name)}", value) for name, value in entries}


def _number(what: str, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:  # of an integer
            pass
    raise ValueError(f"{what} is {_shown(value)}")


def _unlike_lora(config: Mapping[str, Any]) -> list[str]:
    if config.get("peft_type") != "LORA":
        return [f"peft_type = {_shown(config.get('peft_type'))}"]
    begun = config.get("init_lora_weights", True)
    is_plain = isinstance(begun, (bool, str, type(None))) and begun in PLAIN_BEGINNINGS
    odd = [] if is_plain else [f"init_lora_weights = {_shown(begun)}"]
    return odd + [f"{key} = {_shown(v)}" for key, v in config.items() if v and key not in HARMLESS]


def _with_peft(trained_on: str, adapter: Path) -> str:
    """What to do with an adapter that is not read here; names are a stranger's, and quoted by Python."""
    base = trained_on if 0 < len(trained_on) <= LONGEST_SHOWN else "BASE"
    return (
        "Merge it with peft, and take the delta of what comes out: `from peft import PeftModel; "
        "from transformers import WhisperForConditionalGeneration as W; "
        f"PeftModel.from_pretrained(W.from_pretrained({base!r}), {str(adapter)!r})"
        ".merge_and_unload().save_pretrained('merged-adapter')`."
    )


def _shown(value: Any) -> str:
    """A value of any length in a message."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
