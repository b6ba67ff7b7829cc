"""The benchmarks run; what they measure is never asserted."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytest.importorskip("learn2learn")


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("throughput", "sinusoid --rows maml first_order --forms eager --seconds 0 --rounds 2", "first_order"),
        ("throughput", "--end-to-end sinusoid --forms eager --rounds 2", "end to end"),
        ("hotspots", "sinusoid --forms eager --seconds 0", "products"),
    ],
)
def test_smallest_case(
    script: str, arguments: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [script, *arguments.split()])
    runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="__main__")
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("script", ["growth", "kills", "start", "step_cost"])
def test_arguments(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="__main__")
    assert f"benchmarks/{script}.py" in capsys.readouterr().out
