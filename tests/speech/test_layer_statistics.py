"""Gram matrices of layers' inputs and squared gradients, against plain float64 passes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from speech_models import make_test_set, make_whisper

from lorsmerge_cli.checkpoint.names import linear_weights
from lorsmerge_cli.data.audio_source import AudioFile
from lorsmerge_cli.data.dataset import load_data
from lorsmerge_cli.data.utterance import Utterance
from lorsmerge_cli.speech.model import SpeechModel, audio_of
from lorsmerge_cli.speech.source import find_model
from lorsmerge_cli.speech.statistics import gram_matrices, input_of, squared_gradients


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> SpeechModel:
    folder = make_whisper(tmp_path_factory.mktemp("model") / "base", spells=True)
    return find_model(folder).open(torch.float32, "cpu")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Utterance, ...]:
    manifest = make_test_set(tmp_path_factory.mktemp("data"), count=5)
    return load_data([manifest], max_seconds=2.0).utterances


def weights_of(speech: SpeechModel) -> list[str]:
    folder = Path(speech.name)
    return sorted(linear_weights(find_model(folder).checkpoint.float_specs))


def wide(speech: SpeechModel) -> SpeechModel:
    return replace(speech, model=copy.deepcopy(speech.model).double())


def passes(speech: SpeechModel, row: Utterance):
    """A forward pass of one utterance, written out: what the decoder is given, and the labels."""
    tokens = speech.labels(row)
    start = speech.model.config.decoder_start_token_id
    return speech.model(
        input_features=speech.features([audio_of(row)]).to(speech.model.dtype),
        decoder_input_ids=torch.tensor([[start, *tokens[:-1]]]),
    ).logits[0], tokens


def test_gram_matrices_are_those_of_a_hook_on_every_layer(speech: SpeechModel, rows) -> None:
    model = wide(speech)
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in weights_of(speech)}
    for name, heard in inputs.items():
        layer = model.model.get_submodule(name.removesuffix(".weight"))
        layer.register_forward_hook(lambda _layer, x, _y, heard=heard: heard.append(x[0][0]))
    with torch.no_grad():
        for row in rows:
            passes(model, row)
    stored = sorted({input_of(name) for name in inputs})
    assert len(stored) < len(inputs)
    told = []
    grams, counts = gram_matrices(speech, rows, stored, lambda: told.append(1))
    assert len(told) == len(rows)
    for name, heard in inputs.items():
        everything = torch.cat(heard)
        expected = everything.T @ everything / len(everything)
        got = grams[input_of(name)]
        assert counts[input_of(name)] == len(everything)
        assert torch.equal(got, got.T)
        torch.testing.assert_close(
            got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )


def test_squared_gradients_are_those_of_each_text(speech: SpeechModel, rows) -> None:
    model = wide(speech)
    model.model.requires_grad_(True)
    expected = {name: torch.zeros_like(value) for name, value in model.model.named_parameters()}
    for row in rows:
        logits, tokens = passes(model, row)
        given = len(speech.prompt(row.language, row.task)) - 1
        log_likelihood = sum(
            torch.log_softmax(logits[place], 0)[token]
            for place, token in enumerate(tokens)
            if place >= given
        )
        gradients = torch.autograd.grad(log_likelihood, list(model.model.parameters()))
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient**2 / len(rows)
    needed = [value.requires_grad for value in speech.model.parameters()]
    got = squared_gradients(speech, rows)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-2, atol=1e-4 * float(value.abs().max()) + 1e-12
        )
    assert [value.requires_grad for value in speech.model.parameters()] == needed
    assert all(value.grad is None for value in speech.model.parameters())


def test_no_hook_stays_after_an_error(speech: SpeechModel, rows) -> None:
    names = weights_of(speech)
    lost = replace(rows[1], audio=AudioFile(Path("nowhere.wav")))
    with pytest.raises(Exception, match="nowhere"):
        gram_matrices(speech, [rows[0], lost], names)
    for name in names:
        layer = speech.model.get_submodule(name.removesuffix(".weight"))
        assert not layer._forward_pre_hooks


@pytest.mark.parametrize(("name", "first"), [
    ("model.encoder.layers.11.self_attn.k_proj.weight", "model.encoder.layers.11.self_attn.q_proj.weight"),
    ("model.decoder.layers.2.self_attn.q_proj.weight", "model.decoder.layers.2.self_attn.q_proj.weight"),
    ("model.decoder.layers.2.self_attn.out_proj.weight", "model.decoder.layers.2.self_attn.out_proj.weight"),
    ("model.decoder.layers.2.encoder_attn.k_proj.weight", "model.decoder.layers.0.encoder_attn.k_proj.weight"),
    ("model.decoder.layers.2.encoder_attn.q_proj.weight", "model.decoder.layers.2.encoder_attn.q_proj.weight"),
    ("model.encoder.layers.2.fc2.weight", "model.encoder.layers.2.fc2.weight"),
])  # fmt: skip
def test_layers_that_share_their_input(name: str, first: str) -> None:
    assert input_of(name) == first
