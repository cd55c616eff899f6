"""Data sets as they lie on the Hub: Parquet whose columns have features of `datasets`, and a card."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
import soundfile
from hub_server import Hub
from pyarrow import parquet

AUDIO = {"sampling_rate": 16_000, "_type": "Audio"}
CELL = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
VALUES = {"string": pyarrow.string(), "int32": pyarrow.int32(), "int64": pyarrow.int64(),
          "float32": pyarrow.float32(), "float64": pyarrow.float64()}  # fmt: skip


def sound(number: int, format: str = "WAV", seconds: float = 0.4) -> bytes:
    """A short tone, another one for each number, in a format of soundfile's or OPUS."""
    time = np.arange(round(seconds * 16_000)) / 16_000
    file = io.BytesIO()
    kind = {"format": "OGG", "subtype": "OPUS"} if format == "OPUS" else {"format": format}
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * (200 + 37 * number) * time), 16_000, **kind)
    return file.getvalue()


def audio(number: int, format: str = "WAV", **about: Any) -> dict[str, Any]:
    """What a row has in a column of audio."""
    return {"bytes": sound(number, format), "path": f"clip{number}.{format.lower()}"} | about


def labels(*names: str) -> dict[str, Any]:
    """A feature of numbers that stand for names."""
    return {"names": list(names), "_type": "ClassLabel"}


def table(rows: Sequence[Mapping[str, Any]], features: Mapping[str, Any], group: int = 2) -> bytes:
    """Rows as Parquet; a feature is AUDIO, `labels(...)`, or the name of a type."""
    written = {
        name: {"dtype": kind, "_type": "Value"} if isinstance(kind, str) else kind
        for name, kind in features.items()
    }
    types = {"Audio": CELL, "ClassLabel": pyarrow.int64()}
    fields = [
        (name, types.get(kind["_type"]) or VALUES[kind["dtype"]]) for name, kind in written.items()
    ]
    about = {"huggingface": json.dumps({"info": {"features": written}})}
    schema = pyarrow.schema(fields, about)
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), file, row_group_size=group)
    return file.getvalue()


def card(configs: Mapping[str, Sequence[str]], folder: str = "") -> str:
    """A README that names configurations, their splits, and where their files are."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {folder}{config}/{split}-*"]
    return "\n".join([*lines, "---", "# A data set"])


FLEURS = {
    "id": "int32", "num_samples": "int32", "path": "string", "audio": AUDIO,
    "transcription": "string", "raw_transcription": "string",
    "gender": labels("male", "female", "other"), "lang_id": labels("ca_es", "cmn_hans_cn", "en_us"),
    "language": "string", "lang_group_id": labels("western_european_we"),
}  # fmt: skip
SENTENCES = {  # of FLEURS' ids, in each language
    "ca_es": {1: "La nena veu ocells.", 2: "L'avi compra pa, llet i mel.", 3: "Fa fred."},
    "cmn_hans_cn": {1: "女孩看到鸟。", 2: "爷爷买面包。"},
    "en_us": {1: "The girl sees birds.", 2: "Grandfather buys bread, milk and honey."},
}
NAMES = {"ca_es": "Catalan", "cmn_hans_cn": "Mandarin Chinese", "en_us": "English"}


def fleurs_rows(config: str, copies: int = 2) -> list[dict[str, Any]]:
    """Rows as FLEURS has them: each sentence said by several speakers."""
    rows = []
    for take in range(copies):
        for key, text in SENTENCES[config].items():
            number = 10 * key + take + 100 * list(SENTENCES).index(config)
            plain = text.lower().translate({ord(mark): None for mark in ",.。"})
            rows.append(
                {"id": key, "num_samples": 6400, "path": f"{number}.wav", "audio": audio(number),
                 "transcription": plain, "raw_transcription": text, "gender": take % 2,
                 "lang_id": list(SENTENCES).index(config), "language": NAMES[config],
                 "lang_group_id": 0}
            )  # fmt: skip
    return rows


def fleurs_files(folder: str = "") -> dict[str, str | bytes]:
    """Files of a data set like FLEURS, in Parquet: three languages, a train and a test split each."""
    files: dict[str, str | bytes] = {
        "README.md": card(dict.fromkeys(SENTENCES, ("train", "validation", "test")), folder)
    }
    for config in SENTENCES:
        for split, copies in {"train": 2, "validation": 1, "test": 2}.items():
            rows = fleurs_rows(config, copies)
            name = f"{folder}{config}/{split}-00000-of-00001.parquet"
            files[name] = table(rows, FLEURS)
    return files


def add_set(hub: Hub, name: str, files: Mapping[str, str | bytes], **about: Any) -> str:
    """Put a data set on a Hub; returns its commit."""
    return hub.add_repo(f"datasets/{name}", files, **about)
