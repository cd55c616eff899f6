"""What kills at random moments cost: nothing of a user's, and no folder that is torn or gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from results_files import merge, record, write_results

HERE = Path(__file__).parent
WHISPER = HERE.parents[1] / "examples" / "demo" / "bundle" / "base"
CELLS = [("ca", "ca", "asr"), ("de", "de", "asr")]
KILLS = 300


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_no_file_is_lost_by_kills_at_random_moments(models: Path, tmp_path: Path) -> None:
    records = [record(name, cell, 0.2) for name in ("pretrained", "ta") for cell in CELLS]
    write_results(tmp_path / "merged.json", records, {"pretrained": {}, "ta": merge("ta")})
    script = [sys.executable, "-W", "ignore", HERE / "killed_runs.py"]
    done = subprocess.run(
        [*script, tmp_path, models, WHISPER, str(KILLS), "0"], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    count = json.loads(done.stdout)
    assert count.pop("early") > KILLS / 3
    assert count == {"kills": KILLS, "lost": 0, "torn": 0, "absent": 0}
