"""Open a merged model as any other Whisper, and run it on a sound.

python examples/transcribe.py merged/ [audio.wav]
"""

from __future__ import annotations

import argparse

import numpy as np
from transformers import logging, pipeline

RATE = 16_000  # samples per second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("audio", nargs="?", help="a sound file; two seconds of a tone if not given")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    transcriber = pipeline("automatic-speech-recognition", model=arguments.model, device="cpu")
    time = np.arange(2 * RATE) / RATE
    tone = {"raw": np.sin(2 * np.pi * 440 * time).astype(np.float32), "sampling_rate": RATE}
    text = transcriber(
        arguments.audio or tone,
        generate_kwargs={"language": "ca", "task": "transcribe", "max_new_tokens": 8},
    )["text"]
    parameters = transcriber.model.num_parameters()
    print(f"{arguments.model}: {parameters:,} parameters, opened; it hears {text!r}")


if __name__ == "__main__":
    main()
