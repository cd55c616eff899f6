"""Train the demo's base: speech in five languages to text, and to English text.

    python examples/demo/train_base.py work/base         # 45 minutes on two cores

Three phases: alignment with an auxiliary
character CTC on the encoder, then without it, then with wide acoustics. A run that was stopped
goes on at the phase it was in.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from acoustics import BASE, surround
from model import SECONDS, features, make_model, make_processor
from sentences import LANGUAGES, draw
from torch import nn
from voices import RATE, Voices

CLIPS = 6000  # of each language
VARIANTS = ("m1", "m2", "m3", "m4", "f1", "f2")
BATCH = 64
# name, steps, learning rate, weight of CTC, share of clips with acoustics
PHASES = (("align", 1000, 1.2e-3, 0.5, 0.0), ("plain", 450, 6e-4, 0.0, 0.0),
          ("wide", 900, 6e-4, 0.0, 1.0))  # fmt: skip


def speak() -> tuple[np.ndarray, list[tuple[str, str, str]]]:
    """Clean clips [clips, samples] in 16 bits, and (language, text, English) of each."""
    rng, voices = random.Random("base"), Voices()
    waves = np.zeros((CLIPS * len(LANGUAGES), SECONDS * RATE), np.int16)
    rows = []
    for language in LANGUAGES:
        for _ in range(CLIPS):
            sentence = draw(language, rng)
            voice, speed = f"{language}+{rng.choice(VARIANTS)}", rng.randint(220, 285)
            clip = voices.say(sentence.text, voice, speed, rng.randint(30, 70))
            while len(clip) > waves.shape[1]:
                speed = int(speed * 1.1)
                clip = voices.say(sentence.text, voice, speed, 50)
            start = rng.randint(0, waves.shape[1] - len(clip))
            waves[len(rows), start : start + len(clip)] = 32000 * clip / np.abs(clip).max()
            rows.append((language, sentence.text, sentence.english))
    return waves, rows


def train(output: Path, seed: int) -> None:
    """Train and save, after each phase, a folder in half precision."""
    torch.manual_seed(seed)
    processor = make_processor(output)
    model = make_model(processor).train()
    waves, rows = speak()
    clean: dict[int, torch.Tensor] = {}  # features of clips that no acoustics change
    letters = sorted({letter for _, text, _ in rows for letter in text})
    head = nn.Linear(model.config.d_model, len(letters) + 1)
    tokenizer = processor.tokenizer
    labels = [
        [
            torch.tensor(
                tokenizer.convert_tokens_to_ids([f"<|{language}|>", f"<|{task}|>", "<|notimestamps|>"])
                + tokenizer(said, add_special_tokens=False).input_ids
                + [tokenizer.eos_token_id]
            )
            for task, said in (("transcribe", text), ("translate", english))
        ]
        for language, text, english in rows
    ]  # fmt: skip
    spelled = [torch.tensor([1 + letters.index(c) for c in text]) for _, text, _ in rows]
    for name, steps, rate, ctc, acoustics in PHASES:
        kept = output / f"{name}.pt"
        if kept.exists():  # an earlier run was stopped after this phase
            model.load_state_dict(torch.load(kept))
            continue
        rng, generator = random.Random(f"{seed}/{name}"), torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda n, steps=steps: min((n + 1) / min(200, steps), 1.05 - n / steps, 1)
        )
        began, total = time.monotonic(), 0.0
        for step in range(1, steps + 1):
            chosen = rng.sample(range(len(rows)), BATCH)
            if acoustics:
                batch = torch.from_numpy(waves[chosen]).float() / 32768
                inputs = features(surround(batch, BASE, generator), processor.feature_extractor)
            else:
                for index in chosen:
                    if index not in clean:
                        wave = torch.from_numpy(waves[index : index + 1]).float() / 65536
                        clean[index] = features(wave, processor.feature_extractor)[0].half()
                inputs = torch.stack([clean[index] for index in chosen]).float()
            loss = step_loss(model, inputs, [labels[i] for i in chosen])
            if ctc:
                loss = loss[0] + ctc * ctc_loss(head(loss[1]), [spelled[i] for i in chosen])
            else:
                loss = loss[0]
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], 1.0)
            optimiser.step()
            schedule.step()
            total += loss.item()
            if step % 25 == 0:
                print(f"{name} {step}/{steps} loss {total / 25:.3f} "
                      f"{(time.monotonic() - began) / step:.2f} s a step", flush=True)  # fmt: skip
                total = 0.0
        torch.save(model.state_dict(), kept)
        print(name, "kept", flush=True)
    model.half().save_pretrained(output)
    processor.save_pretrained(output)


def step_loss(
    model: nn.Module, inputs: torch.Tensor, labels: list[list[torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of both tasks' labels from one pass of the encoder, and the encoder's states."""
    states = model.model.encoder(inputs).last_hidden_state
    both = [row[task] for task in (0, 1) for row in labels]
    padded = nn.utils.rnn.pad_sequence(both, batch_first=True, padding_value=-100)
    start = torch.full((len(both), 1), model.config.decoder_start_token_id)
    fed = torch.cat([start, padded[:, :-1].clamp(min=0)], 1)
    hidden = model.model.decoder(
        input_ids=fed, encoder_hidden_states=torch.cat([states, states]), use_cache=False
    ).last_hidden_state
    logits = model.proj_out(hidden)
    loss = nn.functional.cross_entropy(
        logits.flatten(0, 1), padded.flatten(), ignore_index=-100, label_smoothing=0.05
    )
    return loss, states


def ctc_loss(logits: torch.Tensor, spelled: list[torch.Tensor]) -> torch.Tensor:
    """CTC per character; a text too long for the frames counts as zero."""
    lengths = torch.tensor([len(text) for text in spelled])
    return nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), torch.cat(spelled),
        torch.full_like(lengths, logits.shape[1]), lengths, zero_infinity=True,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.output, arguments.seed)
