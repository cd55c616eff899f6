"""How sure a model is of the texts that it decoded: the mean log-probability of their tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from lorsmerge_cli.speech.model import SpeechModel

LARGEST_LOGITS = 1 << 26  # elements at a time: 256 MB in float32
DECIMALS = 4  # more would differ with the batch that an utterance was in


def mean_log_probabilities(
    speech: SpeechModel,
    heard: Tensor,
    tokens: Tensor,
    prompt: int,
    suppress: tuple[int, ...] = (),
    begin_suppress: tuple[int, ...] = (),
) -> list[float]:
    """Return the mean natural logarithm of the probabilities of a batch's generated tokens.

    This is `avg_logprob` of Whisper (Radford et al. 2022, 4.5): of the tokens after the prompt, the
    end included where it was reached, among the tokens that are not suppressed. It does not depend on
    the search: the decoder reads each text once more.

    Args:
        speech: the model, on its device.
        heard: [clips, positions, width], by `decoding.encode`.
        tokens: [clips, tokens] of `generate`: prompts and texts, padded with the end token.
        prompt: tokens of a prompt.
        suppress: tokens that were never generated.
        begin_suppress: likewise for the first token of a text.

    Returns:
        A number of at most 0 for each clip, rounded to four decimals; NaN if the model's outputs are
        no numbers.
    """
    model = speech.model
    with torch.inference_mode():
        hidden = model.model.decoder(
            input_ids=tokens[:, :-1], encoder_hidden_states=heard, use_cache=False
        ).last_hidden_state[:, prompt - 1 :]
        said = tokens[:, prompt:].to(hidden.device)
        ended = (said == model.config.eos_token_id).long().cumsum(1)
        counted = (ended == 0) | ((ended == 1) & (said == model.config.eos_token_id))
        never, not_first = speech.known(suppress), speech.known(begin_suppress)
        step = max(1, LARGEST_LOGITS // (int(model.config.vocab_size) * hidden.shape[1]))
        found: list[float] = []
        for start in range(0, len(said), step):
            part = slice(start, start + step)
            logits = model.proj_out(hidden[part]).float()
            logits[..., never] = -torch.inf
            logits[:, 0, not_first] = -torch.inf
            chosen = logits.log_softmax(-1).gather(-1, said[part, :, None])[..., 0].double()
            kept = counted[part]
            total = chosen.where(kept, torch.zeros_like(chosen)).sum(1)
            found += (total / kept.sum(1)).tolist()
    return [round(value, DECIMALS) for value in found]
