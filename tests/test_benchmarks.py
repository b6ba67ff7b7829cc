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
        ("peers", "sinusoid --seconds 0 --rounds 2", "JAX and optax"),
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


@pytest.mark.parametrize("script", ["growth", "kills", "pictures", "ship", "start", "step_cost"])
def test_arguments(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(BENCHMARKS / f"{script}.py"), run_name="__main__")
    assert f"benchmarks/{script}.py" in capsys.readouterr().out


def test_every_case_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the command leaves to be implied, such as the prior precision for classes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    throughput, step_cost = (runpy.run_path(str(BENCHMARKS / f"{name}.py")) for name in ("throughput", "step_cost"))
    llama = [["algorithm=llama", f"curvature={name}"] for name in throughput["CURVATURES"]]
    cases = [[*case, *row] for case in throughput["CASES"].values() for row in (*throughput["ROWS"].values(), *llama)]
    cases += [[*shared, *row] for shared, rows in step_cost["CASES"].values() for row, _ in rows.values()]
    for words in cases:
        assert throughput["built"](words)[0].algorithm is not None, words


@pytest.mark.parametrize("algorithm", ["abml", "platipus", "bmaml"])
def test_memory_of_algorithms_that_draw(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets the noise of its batch, as in training."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = runpy.run_path(str(BENCHMARKS / "memory.py"))
    words = ["dataset=omniglot", "model.filters=8", f"algorithm={algorithm}", "curvature=none"]
    names["_gradient"]("ours", [*words, *names["TINY"]])


def test_all_pictures_of_docs_are_drawn(
    sinusoid_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of a run that is given and of a measurement; no picture in docs is made otherwise."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    arguments = [f"sinusoid_noisy={sinusoid_run}", "--only", "sinusoid_noisy", "growth_time", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["pictures", *arguments])
    names = runpy.run_path(str(BENCHMARKS / "pictures.py"), run_name="__main__")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth_time.png", "sinusoid_noisy.png"]
    docs = {path.stem for path in (BENCHMARKS.parent / "docs").glob("*.png")}
    assert docs == {*names["EXPERIMENTS"], *names["MEASURED"]}
    monkeypatch.setattr(sys, "argv", ["pictures", "growth_time=RUN"])
    with pytest.raises(ValueError, match=r"PICTURE: expected one of sinusoid_noisy, .* got growth_time"):
        runpy.run_path(str(BENCHMARKS / "pictures.py"), run_name="__main__")
