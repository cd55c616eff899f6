"""A PEFT adapter's config: the settings that turn its factors into a delta."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorsmerge_cli.deltas.module_pattern import ModulePattern
from lorsmerge_cli.errors import Mismatch, UnreadableFile
from lorsmerge_cli.inputs import read_json

# Settings that the saved numbers reflect, or that matter in training alone. Any other setting changes
# the form of the delta.
HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# Initialisations that do not change the base; others (PiSSA, OLoRA, CorDA, LoftQ) do.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
DEFAULT_ALPHA = 8.0
LONGEST_SHOWN = 200  # characters of a value in a message
# types of each setting, which may be null as well; others are not checked
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
        alphas: patterns of module names, and the alpha of the modules they match.
        rank_stabilised: whether the scaling is alpha / sqrt(r).
        transposed: whether B @ A is the transpose of a weight, if its shape leaves that open.
        trained_on: name of the base, empty if it is not recorded.
    """

    alpha: float
    alphas: tuple[tuple[ModulePattern, float], ...]
    rank_stabilised: bool
    transposed: bool
    trained_on: str

    def scaling(self, module: str, rank: int) -> float:
        """Return the factor of a module's B @ A."""
        matching = (alpha for pattern, alpha in self.alphas if pattern.matches(module))
        return next(matching, self.alpha) / (rank**0.5 if self.rank_stabilised else rank)


def read_adapter_config(path: Path, adapter: Path) -> AdapterConfig:
    """Read `adapter_config.json`.

    Args:
        path: the file.
        adapter: the adapter's path, for messages.

    Raises:
        UnreadableFile: it is not an adapter's config.
        Mismatch: the adapter is not plain LoRA.
    """
    try:
        config = read_json(path)
        _check_types(config)
        alpha = _number("lora_alpha", config.get("lora_alpha", DEFAULT_ALPHA))
        alphas = {
            name: _number(f"alpha_pattern of {_shown(name)}", value)
            for name, value in (config.get("alpha_pattern") or {}).items()
        }
    except (OSError, ValueError) as error:
        raise UnreadableFile(
            f"{path} is not a readable adapter config ({error}).", "Copy or download it again."
        ) from None
    trained_on = config.get("base_model_name_or_path") or ""
    odd = _unlike_lora(config)
    if odd:
        raise Mismatch(
            f"{adapter} is a PEFT adapter, but not plain LoRA ({', '.join(odd)}): its delta is not "
            "the product of its factors.",
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
    """Raise ValueError for a setting of a type that PEFT does not write."""
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
    initial = config.get("init_lora_weights", True)
    is_plain = isinstance(initial, (bool, str, type(None))) and initial in PLAIN_INITIALISATIONS
    odd = [] if is_plain else [f"init_lora_weights = {_shown(initial)}"]
    return odd + [f"{key} = {_shown(v)}" for key, v in config.items() if v and key not in HARMLESS]


def _with_peft(trained_on: str, adapter: Path) -> str:
    """Return the remedy for an unsupported adapter; untrusted names are quoted by `repr`."""
    base = trained_on if 0 < len(trained_on) <= LONGEST_SHOWN else "BASE"
    return (
        "Merge it with peft, and take the delta of the result: `from peft import PeftModel; "
        "from transformers import WhisperForConditionalGeneration as W; "
        f"PeftModel.from_pretrained(W.from_pretrained({base!r}), {str(adapter)!r})"
        ".merge_and_unload().save_pretrained('merged-adapter')`."
    )


def _shown(value: Any) -> str:
    """Shorten a value for a message."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
