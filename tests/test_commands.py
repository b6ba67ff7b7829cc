"""How the tests wait for processes: one that hangs is told from one that is slow, by what it does."""

import sys
import time
from contextlib import ExitStack
from pathlib import Path

import commands
import pytest

HANGS = """
import threading
def stuck_here():
    threading.Event().wait()
print("so far so good", flush=True)
stuck_here()
"""
POLLS = HANGS.replace("threading.Event().wait()", "while not threading.Event().wait(0.05): pass")
SPINS = HANGS.replace("threading.Event().wait()", "while True: pass")
SPEAKS = """
import time
print("so far so good", flush=True)
for step in range(14):
    time.sleep(0.5)
    print("step", step, flush=True)
"""
WRITES = SPEAKS.replace('print("step", step, flush=True)', 'open("log", "a").write("step\\n")')
WORKS = """
import time
print("so far so good", flush=True)
begun = time.monotonic()
while time.monotonic() < begun + 7:
    pass
"""
IN_A_CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}], check=True)"


def begun(script, folder):
    return commands.begun([sys.executable, "-c", script], folder)


def first_words(process):
    commands.wait_for(lambda: "so far so good" in process.stdout, "its first words", process)


@pytest.mark.parametrize("script", [HANGS, POLLS, IN_A_CHILD.format(HANGS)], ids=["waits", "polls", "in a child"])
def test_what_hangs_is_told(script, tmp_path, monkeypatch):
    with begun(script, tmp_path) as process:
        first_words(process)
        monkeypatch.setattr(commands, "PATIENCE_S", 1.0)
        with pytest.raises(commands.Hung) as hung:
            process.finish()
    for words in ("waited for the end of", "it hangs:", "stdout:\nso far so good", "in stuck_here"):
        assert words in str(hung.value)


def test_work_without_an_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "WORK_S", 1.0)
    with pytest.raises(commands.Hung, match=r"s of CPU time, and nothing said or written") as hung:
        commands.finished([sys.executable, "-c", SPINS], tmp_path)
    assert "in stuck_here" in str(hung.value)


def test_what_is_slow_is_waited_for(tmp_path, monkeypatch):
    """Twice as long as the patience with a process that does nothing."""
    with ExitStack() as stack:
        processes = []
        for number, script in enumerate((SPEAKS, WRITES, WORKS, IN_A_CHILD.format(WORKS))):
            (tmp_path / str(number)).mkdir()
            processes.append(stack.enter_context(begun(script, tmp_path / str(number))))
        for process in processes:
            first_words(process)
        monkeypatch.setattr(commands, "PATIENCE_S", 3.0)
        for process in processes:
            assert process.wait() == 0, process.stderr


def test_nothing_is_left_of_what_hung(tmp_path, monkeypatch):
    script = IN_A_CHILD.format("import os\nopen('pid', 'w').write(str(os.getpid()))" + HANGS)
    with begun(script, tmp_path) as process:
        first_words(process)
        monkeypatch.setattr(commands, "PATIENCE_S", 1.0)
        with pytest.raises(commands.Hung):
            process.finish()
    assert int((tmp_path / "pid").read_text()) not in commands._stats()


def test_nothing_is_left_of_a_test_that_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), begun(HANGS, tmp_path) as process:
        raise ZeroDivisionError
    assert process.pid not in commands._stats()


def test_waiting_for_what_cannot_come_any_more(tmp_path):
    with (
        pytest.raises(commands.Hung, match="waited for a file: the process ended before, with code 3"),
        begun("raise SystemExit(3)", tmp_path) as process,
    ):
        commands.wait_for((tmp_path / "file").exists, "a file", process)


def test_waiting_for_something_in_this_process(monkeypatch):
    begun = time.monotonic()
    commands.wait_for(lambda: time.monotonic() > begun + 0.1, "a tenth of a second")
    monkeypatch.setattr(commands, "PATIENCE_S", 1.0)
    monkeypatch.setattr(commands, "_cpu_s", lambda pid: 0.0)  # threads that other tests left here work on
    with pytest.raises(commands.Hung, match="waited for the end of time: it hangs"):
        commands.wait_for(lambda: False, "the end of time")


def test_a_forked_command_that_hangs_is_told_and_the_next_one_runs(tmp_path, monkeypatch):
    (tmp_path / "ends.py").write_text("import sys\nprint('done')\nsys.exit(5)")
    (tmp_path / "hangs.py").write_text(HANGS)
    commands.run(str(tmp_path / "ends.py"), tmp_path)  # the process that forks is ready
    monkeypatch.setattr(commands, "PATIENCE_S", 3.0)
    with pytest.raises(commands.Hung, match=r"hangs\.py: it hangs:") as hung:
        commands.run(str(tmp_path / "hangs.py"), tmp_path)
    assert "stdout:\nso far so good" in str(hung.value)
    assert "in stuck_here" in str(hung.value)
    result = commands.run(str(tmp_path / "ends.py"), tmp_path)
    assert (result.returncode, result.stdout) == (5, "done\n")


def test_a_process_finds_compiled_what_another_has_imported():
    """To compile all that a command imports takes ten seconds; where Python is told to keep nothing, a folder does."""
    script = "import importlib.util, torch; print(importlib.util.cache_from_source(torch.__file__))"
    done = commands.finished([sys.executable, "-c", script])
    assert Path(done.stdout.strip()).exists(), done.stderr
