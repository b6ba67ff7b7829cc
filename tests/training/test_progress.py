"""The bar: step and time left first, in one line of any width; no estimate from before a compilation."""

import io

import pytest
from rich.console import Console

from meta_exp.training import progress as progress_module
from meta_exp.training.progress import TrainingProgress


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_step_and_time_left_are_in_sight(monkeypatch, width):
    progress = TrainingProgress()
    clock = [100.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: clock[0])
    progress.tasks_a_step, progress.scores = 25, "validation NLL 0.0123, accuracy 0.9876"
    progress._measure_from_here()
    assert "left" not in progress.state(0, 100000, ""), "nothing tells yet"
    progress.compiling, progress.about_s = 100.0, 15.0
    clock[0] = 112.0
    assert progress.state(0, 100000, "") == "step 0 of 100000, compiling, about 15 s: 12 s so far"
    progress.compiling, progress.tasks_seen = None, 25
    progress._measure_from_here()
    clock[0], progress.tasks_seen = 113.0, 275
    assert progress.state(11, 100000, "").startswith("step 11 of 100000, 2.8 h left, 250 tasks/s")
    stream = io.StringIO()
    progress.bar.update(progress.task, total=100000, completed=11)
    Console(file=stream, width=width).print(progress.bar.make_tasks_table(progress.bar.tasks))
    [line] = stream.getvalue().splitlines()
    assert len(line) <= width
    assert "step 11 of 100000, 2.8 h" in line or width == 40
    assert "step 11 of 100000" in line
