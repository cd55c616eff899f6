"""Record the settings and versions that scores depend on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from lorsmerge_cli.metrics.metric import Scoring
from lorsmerge_cli.speech.decoding.clips import DecodingSettings
from lorsmerge_cli.version import __version__


def settings_of(
    decoding: DecodingSettings | None,
    scoring: Scoring,
    dtype: str | None,
    stamp: str = "",
    hearing: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return scoring, decoding (if hypotheses were decoded), versions, and a signature of them.

    Args:
        decoding: None for hypotheses that are scored again.
        scoring: of the hypotheses.
        dtype: that the models computed in.
        stamp: that of the engine.
        hearing: as `Hearing.about` returns it.
    """
    versions = {name: version(name) for name in ("torch", "transformers", "jiwer", "sacrebleu")}
    of_sets = {"sets": dict(scoring.sets)} if scoring.sets else {}
    settings: dict[str, Any] = {
        "scoring": {k: v for k, v in asdict(scoring).items() if k != "sets"} | of_sets,
        "versions": versions | {"python": platform.python_version()},
    }
    if decoding is not None:
        settings["decoding"] = asdict(decoding) | {"dtype": dtype}
        del settings["decoding"]["memory"]  # no score depends on it
        settings["decoding"] |= {"engine": stamp} if stamp else {}
        computed = f"engine:{stamp}" if stamp else f"dtype:{dtype}"
        settings["decoding"] |= hearing or {}
        heard = "".join(f"|{key}:{value}" for key, value in sorted((hearing or {}).items()))
        settings["signature"] = (
            f"beam:{decoding.beam}{heard}|{computed}|{decoding.limit}|"
            f"suppress:{decoding.suppress_digest()}|"
            f"norm:{scoring.normalisation}{'+sets' if scoring.sets else ''}|jiwer:{versions['jiwer']}|"
            f"transformers:{versions['transformers']}|lorsmerge:{__version__}"
        )
    return settings
