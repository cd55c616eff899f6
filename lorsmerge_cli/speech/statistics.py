"""Statistics of a model's layers on audio: Gram matrices of inputs, squares of gradients."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech.batches import IGNORED, collate
from lorsmerge_cli.speech.features import Features
from lorsmerge_cli.speech.model import SpeechModel

SELF_ATTENTION = re.compile(r"\.self_attn\.[qkv]_proj\.")
ENCODER = "model.encoder."
HEARD = re.compile(r"^model\.decoder\.layers\.\d+\.encoder_attn\.[kv]_proj\.")


def input_of(weight: str) -> str:
    """Return the weight of the first of those linear layers of a Whisper that share their input.

    The three projections of a self-attention do, and the keys and values of all cross-attentions,
    which are made of the encoder's output.

    Example:
        >>> input_of("model.encoder.layers.3.self_attn.v_proj.weight")
        'model.encoder.layers.3.self_attn.q_proj.weight'
        >>> input_of("model.decoder.layers.3.encoder_attn.v_proj.weight")
        'model.decoder.layers.0.encoder_attn.k_proj.weight'
    """
    if HEARD.match(weight):
        return "model.decoder.layers.0.encoder_attn.k_proj.weight"
    return SELF_ATTENTION.sub(".self_attn.q_proj.", weight)


def needs_texts(weights: Iterable[str]) -> bool:
    """Tell whether a layer among those of some weights is in the decoder."""
    return not all(weight.startswith(ENCODER) for weight in weights)


def gram_matrices(
    speech: SpeechModel,
    utterances: Sequence[Utterance],
    weights: Sequence[str],
    progress: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the mean of x x^T over the inputs x of linear layers, and how many inputs there were.

    Each utterance is heard by itself and its text given to the decoder, so that there is no padding
    but the silence to the end of the encoder's window, which counts as the encoder counts it. The
    decoder, and with it the texts, is left out where none of the layers is in it. Products are in
    float32 and sums in float64.

    Args:
        speech: the model, on its device.
        utterances: rows with their texts.
        weights: names of the layers' weights.
        progress: called after each utterance.

    Returns:
        Weight -> matrix (k, k), float64, on the CPU; weight -> number of inputs.
    """
    sums: dict[str, Tensor] = {}
    rows = dict.fromkeys(weights, 0)
    wide = torch.device("cpu") if speech.model.device.type == "mps" else speech.model.device

    def add(name: str, _module: object, inputs: tuple[Tensor, ...]) -> None:
        heard = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        product = (heard.T @ heard).to(wide, torch.float64)
        sums[name] = sums[name].add_(product) if name in sums else product
        rows[name] += len(heard)

    with _hooked(speech.model, {name: partial(add, name) for name in weights}):
        for batch in _batches(speech, utterances):
            with torch.inference_mode():
                if needs_texts(weights):
                    speech.model(**batch["inputs"])
                else:
                    speech.model.model.encoder(batch["inputs"]["input_features"])
            progress()
    return {name: (sums[name] / max(1, rows[name])).cpu() for name in weights}, rows


def squared_gradients(
    speech: SpeechModel,
    utterances: Sequence[Utterance],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Return the mean over utterances of the squared gradient of each text's log-likelihood.

    Args:
        speech: the model, on its device; in evaluation mode, so without dropout.
        utterances: rows with their texts; the prompt is given, not scored.
        progress: called after each utterance.

    Returns:
        Parameter -> mean square, of its shape, float64, on the CPU.
    """
    model = speech.model
    wide = torch.device("cpu") if model.device.type == "mps" else model.device
    parameters: dict[str, Any] = dict(model.named_parameters())
    sums = {
        name: torch.zeros(value.shape, dtype=torch.float64, device=wide)
        for name, value in parameters.items()
    }
    needed = {name: value.requires_grad for name, value in parameters.items()}
    model.requires_grad_(True)
    try:
        for batch in _batches(speech, utterances):
            logits = model(**batch["inputs"]).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), batch["wanted"].flatten(),
                ignore_index=IGNORED, reduction="sum",
            )  # fmt: skip
            loss.backward()
            for name, value in parameters.items():
                if value.grad is not None:
                    sums[name] += value.grad.to(wide, torch.float64).square_()
                    value.grad = None
            progress()
    finally:
        for name, value in parameters.items():
            value.grad = None
            value.requires_grad_(needed[name])
    return {name: (total / max(1, len(utterances))).cpu() for name, total in sums.items()}


def _batches(speech: SpeechModel, utterances: Sequence[Utterance]) -> Iterator[dict[str, Any]]:
    """Yield the model's inputs of one utterance at a time, and the tokens that are scored."""
    model, features = speech.model, Features(speech)
    start, pad = model.config.decoder_start_token_id, speech.processor.tokenizer.eos_token_id
    for row in utterances:
        labels = speech.labels(row)[: speech.longest_label]
        given = len(speech.prompt(row.language, row.task)) - 1
        batch = collate([{"features": features.of([row])[0], "labels": labels}], start, pad)
        wanted = batch["labels"].to(model.device)
        wanted[:, :given] = IGNORED
        inputs = {
            "input_features": batch["input_features"].to(model.device, model.dtype),
            "decoder_input_ids": batch["decoder_input_ids"].to(model.device),
        }
        yield {"inputs": inputs | {"use_cache": False}, "wanted": wanted}


@contextmanager
def _hooked(model: Any, hooks: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    """Call each hook before the layer that a weight belongs to runs, with the layer's inputs."""
    handles = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(hook)
        for name, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
