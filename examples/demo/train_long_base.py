"""Make a base for long recordings of the demo's: windows of 8 s, timestamps, and the text before.

    python examples/demo/train_long_base.py work/base         # an hour on two cores

It begins with the weights of the demo's base, whose windows are 2 s, and learns what Whisper's training
teaches beside the text: when each sentence begins and ends, to go on from a sentence that the window
cuts, to take the text so far as context, which language it hears, and that there may be no speech.
A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from acoustics import BASE, surround, without_speech
from model import HOP, SPECIAL, features
from recordings import music
from sentences import LANGUAGES, draw
from torch import nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from voices import RATE, Voices

SECONDS, LONGEST = 8, 192  # of a window; tokens of a prompt and a text
STEP = 2 * HOP / RATE  # seconds from one timestamp to the next
TIMES = round(SECONDS / STEP) + 1
CLIPS = 2400  # of each language
VARIANTS = ("m1", "m2", "m3", "m4", "f1", "f2")
BATCH, RATE_OF_LEARNING = 16, 6e-4
QUIET = 0.08  # share of windows without speech, half of them with music


def make_processor(demo: Path) -> tuple[WhisperProcessor, list[int]]:
    """The demo's tokenizer with its control tokens last, as in Whisper, and timestamps behind them.

    Returns:
        The processor, and for each of its tokens but the timestamps the number that the demo has for it.
    """
    known = json.loads((demo / "tokenizer.json").read_text())["model"]
    words = [
        token for token in sorted(known["vocab"], key=known["vocab"].get) if token not in SPECIAL
    ]
    times = [f"<|{STEP * number:.2f}|>" for number in range(TIMES)]
    order = [*words, *SPECIAL, *times]
    tokenizer = WhisperTokenizer(
        vocab={token: number for number, token in enumerate(order)},
        merges=[tuple(pair) for pair in known["merges"]],
        add_prefix_space=True,
        additional_special_tokens=[*SPECIAL[1:], *times],
    )
    extractor = WhisperFeatureExtractor(
        feature_size=80, hop_length=HOP, chunk_length=SECONDS, n_fft=512
    )
    return WhisperProcessor(extractor, tokenizer), [
        known["vocab"][token] for token in [*words, *SPECIAL]
    ]


def make_model(
    demo: Path, processor: WhisperProcessor, ids: list[int]
) -> WhisperForConditionalGeneration:
    """The demo's base with more positions and tokens (seed torch first)."""
    small = WhisperForConditionalGeneration.from_pretrained(demo, dtype=torch.float32)
    token = processor.tokenizer.convert_tokens_to_ids
    end, start = token("<|endoftext|>"), token("<|startoftranscript|>")
    config = WhisperConfig.from_dict(small.config.to_dict() | {
        "vocab_size": len(ids) + TIMES, "max_source_positions": round(SECONDS / STEP),
        "max_target_positions": LONGEST, "max_length": LONGEST,
        "pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start,
    })  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    own = model.state_dict()
    for name, value in small.state_dict().items():
        if name == "model.encoder.embed_positions.weight":
            continue  # sinusoids, of more positions
        if name in ("model.decoder.embed_tokens.weight", "proj_out.weight"):
            own[name][: len(ids)] = value[ids]
            own[name][len(ids) :] = waves(TIMES, value.shape[1]) * value.std() + value.mean(0)
        elif name == "model.decoder.embed_positions.weight":
            own[name][: len(value)] = value
            own[name][len(value) :] = value.mean(0) + 0.3 * value.std() * torch.randn_like(
                own[name][len(value) :]
            )
        else:
            own[name].copy_(value)
    model.load_state_dict(own)
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start,
        max_length=LONGEST, is_multilingual=True, return_timestamps=False,
        max_initial_timestamp_index=round(1 / STEP),
        lang_to_id={f"<|{name}|>": token(f"<|{name}|>") for name in ("en", *LANGUAGES)},
        task_to_id={task: token(f"<|{task}|>") for task in ("translate", "transcribe")},
        no_timestamps_token_id=token("<|notimestamps|>"), prev_sot_token_id=token("<|startofprev|>"),
        suppress_tokens=[], begin_suppress_tokens=[token("Ġ"), end],
    )  # fmt: skip
    return model


def waves(count: int, size: int) -> torch.Tensor:
    """Sinusoids [count, size]: neighbours are alike."""
    scales = torch.exp(-math.log(10000) * torch.arange(size // 2) / (size // 2 - 1))
    angles = torch.arange(count)[:, None] * scales
    return torch.cat([angles.sin(), angles.cos()], 1)


@dataclass(frozen=True)
class Clip:
    """A clean sentence in 16 bits, its text and its English."""

    samples: np.ndarray
    text: str
    english: str


def speak() -> dict[str, list[list[Clip]]]:
    """Sentences of each language, one list for each voice."""
    rng, voices, found = random.Random("long base"), Voices(), {}
    for language in LANGUAGES:
        found[language] = [[] for _ in VARIANTS]
        for number in range(CLIPS):
            sentence, voice = draw(language, rng), number % len(VARIANTS)
            said = voices.say(
                sentence.text,
                f"{language}+{VARIANTS[voice]}",
                rng.randint(220, 285),
                rng.randint(30, 70),
            )
            samples = (32000 * said / np.abs(said).max()).astype(np.int16)
            found[language][voice].append(Clip(samples, sentence.text, sentence.english))
    return found


@dataclass(frozen=True)
class Window:
    """A window's audio, and what is said when.

    Attributes:
        samples: [8 s] clean.
        language: that is spoken.
        said: the sentences that lie in it, with seconds of start and end.
        cut: start of a sentence that its end cuts, or None.
        before: sentences that came before, of which the decoder is told.
        kind: `speech`, `music` or `noise`.
    """

    samples: np.ndarray
    language: str
    said: list[tuple[float, float, Clip]]
    cut: float | None
    before: list[Clip]
    kind: str = "speech"


def draw_window(clips: dict[str, list[list[Clip]]], rng: random.Random, *, timed: bool) -> Window:
    """A piece of a recording at random; without timestamps no sentence is cut."""
    language = rng.choice(LANGUAGES)
    voice = rng.choice(clips[language])
    samples = np.zeros(SECONDS * RATE, np.float32)
    said, cut = [], None
    before = [rng.choice(voice) for _ in range(rng.randint(1, 8))] if rng.random() < 0.5 else []
    if rng.random() < QUIET:
        if rng.random() < 0.5:
            return Window(0.5 * music(SECONDS * RATE, rng), language, [], None, before, "music")
        scale = np.resize(voice[0].samples, SECONDS * RATE) / np.float32(32768)
        return Window(scale, language, [], None, before, "noise")
    at = rng.uniform(0, 1) if rng.random() < 0.9 else rng.uniform(0, 5)
    while True:
        clip = rng.choice(voice)
        length = len(clip.samples) / RATE
        begin = int(at * RATE)
        if at + length > SECONDS - STEP:
            if timed and at < SECONDS - 0.4 and said and rng.random() < 0.7:
                piece = clip.samples[: len(samples) - begin] / 32768
                samples[begin : begin + len(piece)] = piece
                cut = at
            if said:
                break
            at = rng.uniform(0, 1)
            continue
        samples[begin : begin + len(clip.samples)] = clip.samples / 32768
        said.append((at, at + length, clip))
        if rng.random() < 0.12:
            break
        at += length + (rng.uniform(0.1, 1) if rng.random() < 0.75 else rng.uniform(1, 4))
        if rng.random() < 0.05 and at < SECONDS - 2:  # music between sentences
            begin = int((at + 0.1) * RATE)
            at += rng.uniform(1, SECONDS - at)
            rest = samples[begin : int(at * RATE)]
            if len(rest) > RATE // 2:
                rest += 0.5 * music(len(rest), rng)
            at += 0.2
    return Window(samples, language, said, cut, before)


def heard(windows: list[Window], generator: torch.Generator) -> torch.Tensor:
    """The windows' audio [windows, samples] in surroundings of their own."""
    clean = torch.from_numpy(np.stack([window.samples for window in windows])).float()
    mute = torch.tensor([window.kind == "noise" for window in windows])
    found = surround(clean, BASE, generator)
    if mute.any():
        found[mute] = surround(clean[mute], without_speech(BASE), generator)
    return found


def label(
    window: Window, task: str, tokenizer: WhisperTokenizer, rng: random.Random, *, timed: bool
) -> tuple[list[int], int]:
    """The decoder's tokens, from the prompt on, and how many of them are not learnt."""
    token = tokenizer.convert_tokens_to_ids

    def text(clip: Clip) -> list[int]:
        words = clip.text if task == "transcribe" else clip.english
        return list(tokenizer(words, add_special_tokens=False).input_ids)

    def at(seconds: float) -> int:
        return token("<|0.00|>") + min(TIMES - 1, round(seconds / STEP))

    past: list[int] = []
    stop = 0.0
    for clip in window.before:  # with timestamps where the text has them, as decoding goes on
        begin = stop + rng.uniform(0.1, 1)
        length = len(clip.samples) / RATE
        begin = begin if begin + length <= SECONDS else rng.uniform(0, 1)  # of the next window
        stop = begin + length
        past += [at(begin), *text(clip), at(stop)] if timed else text(clip)
    room = LONGEST // 2 - 1
    prompt = [token("<|startofprev|>"), *past[-room:]] if past else []
    start, end = token("<|startoftranscript|>"), token("<|endoftext|>")
    if window.kind != "speech" and rng.random() < 0.5:
        return [*prompt, start, token("<|nospeech|>"), end], len(prompt) + 1
    head = [*prompt, start, token(f"<|{window.language}|>"), token(f"<|{task}|>")]
    skipped = len(prompt) + 1 if window.kind == "speech" else len(head)
    if timed:
        body = [
            number
            for begin, stop, clip in window.said
            for number in (at(begin), *text(clip), at(stop))
        ]
        body += [at(window.cut)] if window.cut is not None else []
        body = body or [at(0)]
    else:
        body = [token("<|notimestamps|>")] + [n for *_, clip in window.said for n in text(clip)]
    return [*head, *body, end][:LONGEST], skipped


def loss_of(
    model: nn.Module, inputs: torch.Tensor, labels: list[tuple[list[int], int]], end: int
) -> torch.Tensor:
    """Cross-entropy of two labels for each window, the first tasks' and then the second's."""
    states = model.model.encoder(inputs).last_hidden_state
    total, count = torch.zeros(()), 0
    by_length = sorted(range(len(labels)), key=lambda number: len(labels[number][0]))
    for part in (by_length[: len(labels) // 2], by_length[len(labels) // 2 :]):  # less padding
        rows = [torch.tensor(labels[number][0]) for number in part]
        fed = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=end)
        wanted = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        for row, number in zip(wanted, part, strict=True):
            row[: labels[number][1]] = -100
        hidden = model.model.decoder(
            input_ids=fed[:, :-1], use_cache=False,
            encoder_hidden_states=states[[number % len(states) for number in part]],
        ).last_hidden_state  # fmt: skip
        total = total + nn.functional.cross_entropy(
            model.proj_out(hidden).flatten(0, 1), wanted[:, 1:].flatten(),
            ignore_index=-100, label_smoothing=0.05, reduction="sum",
        )  # fmt: skip
        count += int((wanted[:, 1:] != -100).sum())
    return total / count


def train(demo: Path, output: Path, seed: int, steps: int) -> None:
    """Train, and save a folder in half precision; a run that was stopped goes on where it was kept."""
    torch.manual_seed(seed)
    processor, ids = make_processor(demo)
    model = make_model(demo, processor, ids).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE_OF_LEARNING)
    output.mkdir(parents=True, exist_ok=True)
    kept, done = output / "training.pt", 0
    if kept.exists():
        state = torch.load(kept)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["step"]
    clips, end = speak(), processor.tokenizer.eos_token_id
    began, total = time.monotonic(), 0.0
    for step in range(done + 1, steps + 1):
        optimiser.param_groups[0]["lr"] = RATE_OF_LEARNING * min(step / 100, 1.03 - step / steps)
        rng = random.Random(f"{seed}/{step}")
        generator = torch.Generator().manual_seed(1_000_000 * seed + step)
        timed = [rng.random() < 0.6 for _ in range(BATCH)]
        windows = [draw_window(clips, rng, timed=kind) for kind in timed]
        labels = [
            label(window, task, processor.tokenizer, rng, timed=kind)
            for task in ("transcribe", "translate")
            for window, kind in zip(windows, timed, strict=True)
        ]
        inputs = features(heard(windows, generator), processor.feature_extractor)
        loss = loss_of(model, inputs, labels, end)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        total += loss.item()
        if step % 25 == 0:
            print(f"{step}/{steps} loss {total / 25:.3f} "
                  f"{(time.monotonic() - began) / (step - done):.2f} s a step", flush=True)  # fmt: skip
            total = 0.0
        if step % 250 == 0:
            state = {"step": step, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save(state, kept.with_suffix(".part"))
            kept.with_suffix(".part").replace(kept)
    model.half().save_pretrained(output)
    processor.save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--demo", type=Path, default=Path(__file__).parent / "bundle" / "base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2200)
    arguments = parser.parse_args()
    train(arguments.demo, arguments.output, arguments.seed, arguments.steps)
