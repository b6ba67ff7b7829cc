"""docs/without_hydra.ipynb, run anew: what it shows is what comes out, numbers within what machines differ by."""

import re
import sys
from copy import deepcopy
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

REPO = Path(__file__).parents[1]
FILE = REPO / "docs" / "without_hydra.ipynb"
NUMBER = re.compile(r"[-+]?\d+\.\d*(?:e[-+]\d+)?")


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(FILE, as_version=4)


def texts(cell):
    """What a cell shows as text, and of which kinds its outputs are."""
    outputs = cell.get("outputs", [])
    kinds = [sorted(output.get("data", [])) for output in outputs]
    return [output.get("text") or output["data"]["text/plain"] for output in outputs], kinds


def words(text):
    return "".join(NUMBER.sub("#", text).split())


def numbers(text):
    return list(map(float, NUMBER.findall(text)))


def test_it_runs_as_it_is_shown(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    again = deepcopy(notebook)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(again, timeout=None, kernel_name="python3", resources=place).execute()
    for before, after in zip(notebook.cells, again.cells, strict=True):
        (shown, kinds), (found, found_kinds) = texts(before), texts(after)
        assert kinds == found_kinds
        for one, other in zip(shown, found, strict=True):
            assert words(one) == words(other)
            assert numbers(one) == pytest.approx(numbers(other), rel=0.2, abs=0.15)
    assert not list(tmp_path.iterdir())


def test_it_is_short_and_of_no_machine(notebook):
    [fitted] = [cell.source for cell in notebook.cells if "meta_exp.fit(" in cell.source and cell.cell_type == "code"]
    assert len([line for line in fitted.splitlines() if line.strip()]) <= 20
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert all(not cell.metadata for cell in notebook.cells)
    assert not re.search(r'"(/|[A-Z]:)[a-z]+/', FILE.read_text())
    assert all(output.output_type != "error" for cell in notebook.cells for output in cell.get("outputs", []))
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in str(output)]
    assert len(pictures) == 1


def test_a_command_in_a_cell_says_lines_and_draws_no_bar(tmp_path, monkeypatch):
    """The cell keeps all that is written to its terminal: each state of a bar."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = "trainer=smoke trainer.max_steps=200 model.widths=[4] test_tasks=4 validation_tasks=4 compile=false"
    command = f"!{sys.executable} {REPO / 'train.py'} algorithm=maml logger=none hydra.run.dir=run {words}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(command)])
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3", resources=place).execute()
    said = "".join(output.text for output in notebook.cells[0].outputs)
    assert set(re.findall(r"\x1b\[[0-9;?]*[A-Za-z]", said)) <= {"\x1b[1m", "\x1b[0m"}, "bold heads of the table"
    lines = said.splitlines()
    assert len(lines) < 40
    assert any(line.startswith("step 200 of 200, ") for line in lines)
    assert lines[-1] == "the result: run/metrics.json"
