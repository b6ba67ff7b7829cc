"""A sweep that is killed and started again ends as one that was not: every file of its runs, to the bit.

The other kinds of runs are killed by the same script, which takes longer: benchmarks/kills.py.
"""

import json
import os
import re
import sys
from pathlib import Path

import commands

REPO = Path(__file__).parents[2]


def test_a_sweep_killed_at_random_moments_and_started_again(tmp_path):
    kills = int(os.environ.get("META_EXP_KILLS", "4"))
    script = [sys.executable, "-W", "ignore", REPO / "benchmarks" / "kills.py", "sweep"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    result = commands.finished([*script, f"--kills={kills}", "--seed=1", f"--folder={tmp_path}"], tmp_path, variables)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)
    killed = json.loads(re.search(r"kills at steps (\[.*?\])", result.stdout)[1])
    assert len(killed) == kills
    assert any(0 < step < 200 for step in killed)  # in the middle of training
    for place in ("sweep_calm", "sweep_0"):
        assert len(list(tmp_path.glob(f"{place}/outputs/*/algorithm*/metrics.json"))) == 4
