"""Put the scores of long.sh into one table, means over seeds, and draw them over lambda.

python examples/paper/long_table.py FOLDER -o FOLDER/long
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Record = dict[str, Any]
# heading of each column, and what is better
COLUMNS = {
    "WER of clips": "less", "WER of recordings": "less", "boundaries s": "less", "within 0.2 s %": "more",
    "language %": "more", "invented words": "less",
}  # fmt: skip
WAYS = {"clips": "clip by clip", "packed": "packed"}


def records(folder: Path, kind: str) -> Iterable[tuple[str, str, Record]]:
    """Yield system, seed and record of all results of one kind."""
    for file in sorted(
        [*folder.glob(f"results/*.{kind}.json"), *folder.glob(f"seed*/results/*.{kind}.json")]
    ):
        for record in json.loads(file.read_text())["records"]:
            system, _, seed = record["model"].partition(":")
            yield system, seed, record


def error_rate(record: Record) -> float:
    """Word error rate in %."""
    return float(record["scores"]["WER"]["score"])


def heard_right(found: list[Record]) -> float:
    """Share of clips, %, whose language was identified, the same weight to each language."""
    shares = []
    for record in found:
        heard = record["details"]["heard_as"]
        shares.append(100 * heard.get(record["language"], 0) / sum(heard.values()))
    return mean(shares)


def timed(found: list[Record]) -> tuple[float, float]:
    """Mean distance of matched boundaries in seconds, and share of sentences within 0.2 s, %."""
    counts = [record["details"]["timestamps"] for record in found]
    matched, within, said = (
        sum(c[key] for c in counts) for key in ("matched", "within", "segments")
    )
    seconds = float(sum(c["seconds"] for c in counts))
    return seconds / max(1, 2 * matched), 100 * within / said


def invented(found: list[Record]) -> float:
    """Words in a minute in which nobody speaks."""
    words = sum(len(row["hypothesis"].split()) for record in found for row in record["rows"])
    return 60 * words / float(sum(record["seconds"] for record in found))


def scores(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return, of each system and column, the value of each seed."""
    grouped: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for kind in ("clips", "long", "silence", "language"):
        for system, seed, record in records(folder, kind):
            grouped[system, seed, kind].append(record)
    table: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (system, _, kind), found in grouped.items():
        values = table[system]
        if kind == "clips":
            values["WER of clips"].append(mean(map(error_rate, found)))
        elif kind == "long":
            values["WER of recordings"].append(mean(map(error_rate, found)))
            distance, within = timed(found)
            values["boundaries s"].append(distance)
            values["within 0.2 s %"].append(within)
        elif kind == "silence":
            values["invented words"].append(invented(found))
        else:
            values["language %"].append(heard_right(found))
    return table


def markdown(table: dict[str, dict[str, list[float]]]) -> str:
    """Return the table as Markdown: mean, and in brackets the standard deviation over seeds."""
    lines = ["| system | " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    for system, values in table.items():
        cells = []
        for column in COLUMNS:
            found = values[column]
            digits = 2 if column != "language %" else 1
            spread = f" ({stdev(found):.{digits}f})" if len(found) > 1 else ""
            cells.append(f"{mean(found):.{digits}f}{spread}" if found else "-")
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(table: dict[str, dict[str, list[float]]], file: Path) -> None:
    """Draw each column over lambda: task arithmetic, with the base at 0 and the fine-tunes as lines.

    Bars are standard deviations over seeds.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        print("No figure is drawn: matplotlib is not installed (pip install 'lorsmerge[plot]').")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for axis, column in zip(axes.flat, COLUMNS, strict=True):
        for colour, (way, called) in zip(("C0", "C1"), WAYS.items(), strict=True):
            start = f"ta_{way}_"
            lambdas = sorted(float(name[len(start) :]) for name in table if name.startswith(start))
            seeds = [table["pretrained"][column]]
            seeds += [table[f"{start}{value:g}"][column] for value in lambdas]
            axis.errorbar(
                [0, *lambdas], [*map(mean, seeds)], [stdev(s) if len(s) > 1 else 0 for s in seeds],
                fmt="o-", color=colour, capsize=3, label=f"merged, {called}",
            )  # fmt: skip
            for name, style in ((f"finetuned_{way}", "--"), (f"joint_{way}", ":")):
                axis.axhline(
                    mean(table[name][column]), color=colour, linestyle=style,
                    label=f"{name.split('_')[0]}, {called}",
                )  # fmt: skip
        axis.set(title=f"{column} ({COLUMNS[column]} is better)", xlabel="lambda")
        axis.set_ylim(bottom=0)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Write table.md and long.png."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="long.sh's")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    table = scores(arguments.folder)
    if not table:
        parser.error(f"{arguments.folder} has no results of long.sh")
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = markdown(table)
    (arguments.output / "table.md").write_text(text)
    draw(table, arguments.output / "long.png")
    print(text)


if __name__ == "__main__":
    main()
