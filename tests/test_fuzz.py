"""A sample of the bad words of fuzz_overrides.py, the same each time; all of them are run by hand, as it says."""

import subprocess
import sys
from pathlib import Path

import fuzz_overrides

REPO = Path(__file__).parents[1]


def test_a_sample_of_bad_words():
    """In a process of its own: what it forks inherits no thread of the tests'."""
    command = [sys.executable, fuzz_overrides.__file__, "--cases", "30", "--seed", "0", "--quick"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 cases, 0 failed" in done.stdout
