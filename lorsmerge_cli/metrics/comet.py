"""COMET (Rei et al. 2020): a trained model's score of a translation, by `comet-score`.

The program runs in an environment of its own: unbabel-comet admits no transformers from 5 on and no
numpy from 2 on, which lorsmerge needs.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lorsmerge_cli.errors import LorsmergeError
from lorsmerge_cli.inputs import read_json
from lorsmerge_cli.metrics.metric import Metric, Scored, Scoring, ratio

if TYPE_CHECKING:
    from lorsmerge_cli.metrics.metric import Floats

PROGRAM = "comet-score"
MODEL = "Unbabel/wmt22-comet-da"
INSTALL = "Run: pipx install unbabel-comet (or: uv tool install unbabel-comet)."
SHOWN = 400  # last characters of a failing program's output


def model_of(scoring: Scoring) -> str:
    """Return the chosen model: a name on the Hub, or a .ckpt file."""
    return scoring.asked.get("comet") or MODEL


def missing_program() -> list[LorsmergeError]:
    """Return a fault where `comet-score` is not installed."""
    if shutil.which(PROGRAM):
        return []
    return [LorsmergeError(f"--metric comet needs {PROGRAM}, which is not on the PATH.", INSTALL)]


def statistics(rows: Sequence[Scored], scoring: Scoring) -> Floats:
    """Return of each row its score and 1, (rows, 2): the score of a corpus is the mean.

    Args:
        rows: translations, with the transcript in `source_text`.
        scoring: names the model.

    Raises:
        LorsmergeError: the program is missing, fails, or gives no score for each row.
    """
    import numpy as np

    with TemporaryDirectory(prefix="lorsmerge-comet-") as name:
        folder = Path(name)
        texts = {"src": [row.source_text or "" for row in rows],
                 "mt": [row.hypothesis for row in rows],
                 "ref": [row.reference for row in rows]}  # fmt: skip
        for key, lines in texts.items():
            content = "".join(f"{' '.join(line.split())}\n" for line in lines)
            (folder / key).write_text(content, encoding="utf-8")
        scores = _scores(folder, model_of(scoring), len(rows))
    return np.array([(score, 1.0) for score in scores], dtype=np.float64).reshape(-1, 2)


def _scores(folder: Path, model: str, count: int) -> list[float]:
    """Return the scores of the program for `src`, `mt` and `ref` in a folder."""
    files = {key: str(folder / key) for key in ("src", "mt", "ref", "scores.json")}
    line = [PROGRAM, "-s", files["src"], "-t", files["mt"], "-r", files["ref"], "--model", model,
            "--quiet", "--to_json", files["scores.json"]]  # fmt: skip
    try:
        ended = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise LorsmergeError(f"{PROGRAM} cannot be run ({error.strerror}).", INSTALL) from None
    if ended.returncode:
        output = " ".join((ended.stderr or ended.stdout).split())[-SHOWN:]
        raise LorsmergeError(
            f"{PROGRAM} with the model {model!r} exited with status {ended.returncode}: {output}",
            "Try it by hand; without network give the .ckpt file: --metric comet=FILE.ckpt.",
        )
    try:
        (found,) = read_json(folder / "scores.json").values()
        scores = [float(entry["COMET"]) for entry in found]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LorsmergeError(f"{PROGRAM} wrote no scores ({error!r:.80}).", INSTALL) from None
    if len(scores) != count:
        raise LorsmergeError(f"{PROGRAM} scored {len(scores)} of {count} translations.", INSTALL)
    return scores


def signature(language: str, scoring: Scoring) -> str:
    """Return the model and the program, on which scores depend."""
    return f"model:{model_of(scoring)}|{PROGRAM}"


COMET = Metric(
    name="COMET", task="st", unit="points", higher_is_better=True, statistics=statistics,
    score=lambda sums: 100 * ratio(sums), signature=signature, lowest=-float("inf"),
    only_asked=True, option="MODEL", needs_source=True, faults=missing_program,
)  # fmt: skip
