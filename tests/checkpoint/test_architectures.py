"""What names and shapes say of a model, against the module types of transformers' architectures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

from lorsmerge_cli.checkpoint.names import linear_weights
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.deltas.conv1d import conv1d_weights

MAPPINGS = [
    f"MODEL_FOR_{kind}_MAPPING"
    for kind in (
        "SPEECH_SEQ_2_SEQ", "CTC", "AUDIO_XVECTOR", "AUDIO_CLASSIFICATION", "TEXT_TO_WAVEFORM",
        "PRETRAINING", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "SEQUENCE_CLASSIFICATION",
    )
]  # fmt: skip
LABELS = 77  # a number of classes that nothing else has
LINEAR = ("Linear", "Conv1D", "QuantLinear")
# Linear layers inside of numbered ones that are left whole: routers, and what is called an embedding
LEFT_WHOLE = {"classifier", "router", "layer", "gate", "relative_pos_embeddings"}


def models() -> Iterator[PreTrainedModel]:
    """Every architecture that can be built without data, on the meta device and two layers deep."""
    seen = set()
    for mapping in (getattr(modeling_auto, name) for name in MAPPINGS):
        for config_class in list(mapping.keys()):
            classes = mapping[config_class]
            for model_class in classes if isinstance(classes, tuple) else (classes,):
                if model_class not in seen:
                    seen.add(model_class)
                    yield from built(config_class, model_class)


def built(config_class: Any, model_class: Any) -> Iterator[PreTrainedModel]:
    try:
        config = config_class()
        config.num_labels = LABELS
        if hasattr(config, "num_hidden_layers"):
            config.num_hidden_layers = 2
        with torch.device("meta"):
            model = model_class(config)
    except Exception:  # it needs another package, or settings that its config has no defaults for
        return
    yield model


def faults(model: PreTrainedModel) -> Iterator[str]:
    parameters = {
        f"{path}.{key}" if path else key: (module, value)
        for path, module in model.named_modules()
        for key, value in module.named_parameters(recurse=False)
    }
    specs = {
        name: TensorSpec(tuple(value.shape), torch.float32)
        for name, (_, value) in parameters.items()
    }
    embeddings = {id(v) for m, v in parameters.values() if isinstance(m, nn.Embedding)}
    try:
        output = model.get_output_embeddings()
    except NotImplementedError:
        output = None
    pruned, conv1d = linear_weights(specs), conv1d_weights(specs)
    for name, (module, value) in parameters.items():
        if name in pruned:
            if type(module).__name__ not in LINEAR and not isinstance(module, nn.Linear):
                yield f"{name} is pruned and a {type(module).__name__}"
            if module is output or id(value) in embeddings:
                yield f"{name} is pruned and an output layer"
            if value.shape[0] == LABELS:
                yield f"{name} is pruned and has the {LABELS} classes"
        elif isinstance(module, (nn.Linear, Conv1D)) and name.endswith(".weight"):
            *outer, last, _ = name.split(".")
            if any(part.isdigit() for part in outer) and last not in LEFT_WHOLE:
                yield f"{name} is linear and left whole"
        if name in conv1d and conv1d[name] is not isinstance(module, Conv1D):
            yield f"{name} is a {type(module).__name__}, and its shape says {conv1d[name]}"


@pytest.mark.slow
def test_names_and_shapes_agree_with_the_module_types() -> None:
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = {type(model).__name__: list(faults(model)) for model in models()}
    finally:
        transformers.logging.set_verbosity(verbosity)
    assert {name: said for name, said in found.items() if said} == {}
    assert len(found) > 300
    assert {"WhisperForConditionalGeneration", "GPT2LMHeadModel", "BertForMaskedLM"} <= found.keys()
