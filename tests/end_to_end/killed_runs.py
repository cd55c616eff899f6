"""Kill merge, export and report at random moments while they replace folders, and count what was lost.

    python killed_runs.py FOLDER MODELS WHISPER KILLS SEED

FOLDER, which has `merged.json` of eval, is filled with folders that the commands write again and again,
beside a user's own files. MODELS has a base and the fine-tune ca, WHISPER is a model to export. Each run is a fork of this process, which has loaded PyTorch already, so that 300 take a few minutes. Prints a
JSON object: `kills`, `early` (of them those that came before the end of the run), and what must be 0:
`lost` files of a user's, `torn` folders that hold neither the old nor the new output, `absent` folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def started(line: str) -> int:
    """Run a command in a fork; its process id."""
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGINT, signal.default_int_handler)
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    code = 1
    try:
        from lorsmerge_cli.app import main

        sys.argv = line.split()
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def digest(folder: Path) -> str:
    """Of every name and byte below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


def ran(line: str) -> float:
    """Seconds that a command takes."""
    began = time.monotonic()
    assert os.waitpid(started(line), 0)[1] == 0, line
    return time.monotonic() - began


def main() -> None:
    """Prepare the folders, kill, and count."""
    root, models, whisper = (Path(text) for text in sys.argv[1:4])
    kills, draw = int(sys.argv[4]), random.Random(int(sys.argv[5]))
    os.chdir(root)
    import ctranslate2
    import scipy.stats
    import torch
    import transformers

    import lorsmerge_cli.operations.export
    import lorsmerge_cli.operations.merge
    import lorsmerge_cli.operations.report  # noqa: F401

    del ctranslate2, scipy, transformers
    torch.set_num_threads(1)
    mine = [root / "thesis.txt", root / "notes" / "a.md", *(root / f"note-{i}" for i in range(50))]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    merge = f"merge {models}/base {models}/ca --scale"
    jobs = {
        "merged": [f"{merge} {scale} -o merged" for scale in (0.1, 0.2)],
        "shards": [f"{merge} {scale} -o shards --max-shard-size 100KB" for scale in (0.1, 0.2)],
        "ct2": [f"export {whisper} --format ct2 --dtype {x} -o ct2" for x in ("int8", "float16")],
        "report": [f"report merged.json --title {title} -o report" for title in "ab"],
    }
    whole: dict[str, set[str]] = {}
    seconds: dict[str, float] = {}
    for folder, lines in jobs.items():
        for line in lines:
            seconds[folder] = ran(f"lorsmerge {line} --force -q")
            whole.setdefault(folder, set()).add(digest(root / folder))
    for path in (root / "theirs" / "results" / "wer.json", root / "theirs" / "model.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        mine.append(path)
    jobs["theirs"] = [line.replace("-o merged", "-o theirs") for line in jobs["merged"]]
    whole["theirs"], seconds["theirs"] = {digest(root / "theirs")}, 0.2
    count = {"kills": kills, "early": 0, "lost": 0, "torn": 0, "absent": 0}
    for number in range(kills):
        folder = draw.choice(list(jobs))
        child = started(f"lorsmerge {draw.choice(jobs[folder])} --force -q")
        time.sleep(draw.uniform(0, 1.1 * seconds[folder]))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, SIGNALS[number % len(SIGNALS)])
        status = os.waitpid(child, 0)[1]
        count["early"] += status != 0
        count["absent"] += not (root / folder).is_dir()
        count["torn"] += digest(root / folder) not in whole[folder]
        count["lost"] += sum(not path.exists() or path.read_text() != "mine" for path in mine)
        for scratch in root.glob(".*.partial"):
            os.system(f"rm -rf '{scratch}'")
    print(json.dumps(count))


if __name__ == "__main__":
    main()
