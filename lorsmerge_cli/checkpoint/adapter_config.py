"""What a PEFT adapter's config says of how its factors become a change of the base."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorsmerge_cli.errors import Mismatch, UnreadableFile

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


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of a LoRA adapter that its delta depends on.

    Attributes:
        alpha: lora_alpha.
        alphas: patterns of module names, and the alpha of what they match.
        rank_stabilised: whether the scaling is alpha / sqrt(r).
        transposed: whether B @ A is the transpose of the weight, as in GPT-2's layers.
        trained_on: name of the base, empty where it is not recorded.
    """

    alpha: float
    alphas: tuple[tuple[str, float], ...]
    rank_stabilised: bool
    transposed: bool
    trained_on: str

    def scaling(self, module: str, rank: int) -> float:
        """What B @ A of a module is multiplied by."""
        matching = (
            alpha for pattern, alpha in self.alphas if re.match(rf"(.*\.)?({pattern})$", module)
        )
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
        config = json.loads(path.read_bytes())
        alphas = {key: float(value) for key, value in (config.get("alpha_pattern") or {}).items()}
        for pattern in alphas:
            re.compile(pattern)
        found = AdapterConfig(
            alpha=float(config.get("lora_alpha", DEFAULT_ALPHA)),
            alphas=tuple(alphas.items()),
            rank_stabilised=bool(config.get("use_rslora")),
            transposed=bool(config.get("fan_in_fan_out")),
            trained_on=str(config.get("base_model_name_or_path") or ""),
        )
    except (OSError, ValueError, AttributeError, TypeError, re.error) as error:
        raise UnreadableFile(
            f"{path} is no adapter config that can be read ({error}).", "Copy or download it again."
        ) from None
    odd = _unlike_lora(config)
    if odd:
        raise Mismatch(
            f"{adapter} is a PEFT adapter of another kind than plain LoRA ({', '.join(odd)}), whose "
            "change of the base is not the product of its factors.",
            "Merge it with peft, and take the delta of what comes out: `from peft import PeftModel; "
            "from transformers import WhisperForConditionalGeneration as W; "
            f"PeftModel.from_pretrained(W.from_pretrained('{found.trained_on or 'BASE'}'), '{adapter}')"
            ".merge_and_unload().save_pretrained('merged-adapter')`.",
        )
    return found


def _unlike_lora(config: Mapping[str, Any]) -> list[str]:
    if config.get("peft_type") != "LORA":
        return [f"peft_type = {config.get('peft_type')}"]
    begun = config.get("init_lora_weights", True)
    odd = [] if begun in PLAIN_BEGINNINGS else [f"init_lora_weights = {begun}"]
    return odd + [f"{key} = {v}" for key, v in config.items() if v and key not in HARMLESS]
