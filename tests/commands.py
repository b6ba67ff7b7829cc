"""Real processes, waited for as long as they get on: a limit here says what hangs, not how busy the machine is.

A process gets on while it says something, writes in its folder, or takes CPU time. One that does none of this for
``PATIENCE_S`` hangs, and so does one that takes ``WORK_S`` of CPU time without a word: both count what the process did,
and neither how long it was kept from doing it. What hangs is told with all that it said and where its threads stand.

The commands need not import everything anew: ``run`` forks them from a process that has.
"""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

REPO = Path(__file__).parents[1]
PATIENCE_S = 120.0  # of the clock
IDLE = 0.05  # of a core in that time; what polls for something takes less, what gets a twentieth of a core takes more
WORK_S = 600.0  # of CPU time
TICKS = os.sysconf("SC_CLK_TCK")
SERVER = """
import atexit, faulthandler, json, os, runpy, sys, traceback
from meta_exp import cli

with cli.quick_imports():  # a child that collects what it inherits would copy all of it
    import hydra.main
    import meta_exp.comparison.compare, meta_exp.production.command, meta_exp.runs.train

for line in sys.stdin:
    if not (child := os.fork()):
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)
os.setsid()
request = json.loads(line)
os.chdir(request["folder"])
os.environ.clear()
os.environ.update(request["variables"])
for stream, file in enumerate([os.devnull, *request["files"]]):
    os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), stream)
faulthandler.enable()
sys.argv = request["command"]
code = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code or 0
except BaseException:
    code = traceback.format_exc()
if isinstance(code, str):
    print(code, file=sys.stderr)
    code = 1
atexit._run_exitfuncs()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # without the interpreter's own end, which would free what was inherited piece by piece
"""


class Hung(AssertionError):
    """What was waited for, why it will not come, and all that the process said."""


class Process:
    """A process that leads a session of its own, and whose words go into files.

    Args:
        command: what it runs.
        pid: its number.
        files: what it says on stdout and stderr.
        folder: where what it writes is looked for, if anywhere.
        poll: returns its exit code, or None while it runs.
    """

    def __init__(
        self,
        command: Sequence[str],
        pid: int,
        files: tuple[Path, Path],
        folder: Path | None,
        poll: Callable[[], int | None],
    ) -> None:
        self.command, self.pid, self.files, self.folder, self.poll = command, pid, files, folder, poll

    @property
    def stdout(self) -> str:
        """What it has said."""
        return self.files[0].read_text()

    @property
    def stderr(self) -> str:
        """What it has said on stderr."""
        return self.files[1].read_text()

    def left(self) -> set[int]:
        """Return the processes that are left of it and of all that it began, those that have ended aside."""
        return _family(self.pid, _stats())

    def send(self, number: signal.Signals) -> None:
        """Send it, and it alone, a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        wait_for(lambda: self.poll() is not None, f"the end of {' '.join(self.command)[:300]}", self)
        code = self.poll()
        assert code is not None
        return code

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end and return what it said."""
        code = self.wait()
        return subprocess.CompletedProcess(self.command, code, self.stdout, self.stderr)


@contextmanager
def begun(
    command: Sequence[object], folder: Path | None = None, variables: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Start ``command`` in ``folder`` with the environment ``variables``; what is left of it at the end is killed."""
    words = list(map(str, command))
    environment = {**(os.environ if variables is None else variables), "PYTHONFAULTHANDLER": "1"}
    with TemporaryDirectory() as place:
        files = Path(place) / "stdout", Path(place) / "stderr"
        with files[0].open("ab") as out, files[1].open("ab") as err:
            options = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, "start_new_session": True}
            popen = subprocess.Popen(words, cwd=folder, env=environment, **options)  # type: ignore[call-overload]
        with _killed_unless_ended(process := Process(words, popen.pid, files, folder, popen.poll)):
            yield process


def finished(
    command: Sequence[object], folder: Path | None = None, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``command``, as ``begun`` starts it, to its end."""
    with begun(command, folder, variables) as process:
        return process.finish()


def run(script: str, folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` in ``folder`` with one thread, no account and no key."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    variables = {name: value for name, value in variables.items() if not name.startswith("WANDB")}
    command = [str(REPO / script), *map(str, arguments)]
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    code: list[int] = []

    def poll() -> int | None:
        if not code and select.select([server.stdout], [], [], 0)[0]:
            code.append(int(server.stdout.readline()))
        return code[0] if code else None

    with TemporaryDirectory() as place:
        files = Path(place) / "stdout", Path(place) / "stderr"
        for file in files:
            file.touch()
        request = {"command": command, "folder": str(folder), "variables": variables, "files": list(map(str, files))}
        server.stdin.write(json.dumps(request).encode() + b"\n")
        with _killed_unless_ended(process := Process(command, int(server.stdout.readline()), files, folder, poll)):
            return process.finish()


def wait_for(condition: Callable[[], object], what: str, process: Process | None = None) -> None:
    """Wait until ``condition`` holds, as long as ``process``, or else this one, gets on.

    Raises:
        Hung: it does not, or it has ended.
    """
    watch = _Watch(process)
    while not condition():
        time.sleep(0.02)
        if (reason := watch.look()) and not condition():
            raise Hung(f"waited for {what}: {reason}" + (_last_words(process) if process else ""))


class _Watch:
    """Whether a process gets on, looked at now and then."""

    def __init__(self, process: Process | None) -> None:
        self.process, self.pid = process, process.pid if process else os.getpid()
        self.signs: object = None
        self.cpu_s = _cpu_s(self.pid)
        self.next = self.since = time.monotonic()
        self.worked = self.worked_before = 0.0  # since the last sign, and of that before ``since``

    def look(self) -> str:
        """Return why the process will get no further, or an empty string."""
        now = time.monotonic()
        if now < self.next:
            return ""
        self.next = now + min(1.0, PATIENCE_S / 20)
        if self.process and self.process.poll() is not None and not self.process.left():
            return f"the process ended before, with code {self.process.poll()}"
        # a process that was killed takes its time with it, so that the sum may fall
        before, self.cpu_s = self.cpu_s, _cpu_s(self.pid)
        self.worked += max(self.cpu_s - before, 0.0)
        if (signs := _signs(self.process)) != self.signs:
            self.signs, self.since, self.worked, self.worked_before = signs, now, 0.0, 0.0
        elif self.worked > WORK_S:
            return f"{self.worked:.0f} s of CPU time, and nothing said or written"
        elif now - self.since > PATIENCE_S:
            worked = self.worked - self.worked_before
            if worked < IDLE * PATIENCE_S:
                return f"it hangs: {worked:.1f} s of CPU time in {now - self.since:.0f} s, and nothing said or written"
            self.since, self.worked_before = now, self.worked
        return ""


def _signs(process: Process | None) -> object:
    """Return what changes whenever the process says or writes something."""
    if process is None:
        return None
    folders = [] if process.folder is None else [process.folder]
    found = []
    for file in [*process.files, *(file for folder in folders for file in folder.rglob("*"))]:
        with suppress(OSError):  # it was removed
            status = file.stat()
            found.append((str(file), status.st_size, status.st_mtime_ns))
    return found


def _stats() -> dict[int, tuple[int, int, float]]:
    """Return of every process its parent, its session, and the CPU time of it and of the children it waited for."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(place.name)] = int(fields[1]), int(fields[3]), sum(map(int, fields[11:15])) / TICKS
    return found


def _family(pid: int, stats: Mapping[int, tuple[int, int, float]]) -> set[int]:
    """Return the processes of the session that ``pid`` leads, and all that they or it began."""
    family = {pid} & set(stats) | {other for other, (_, session, _) in stats.items() if session == pid}
    while more := {other for other, (parent, _, _) in stats.items() if parent in family} - family:
        family |= more
    return family


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process and all that it began; where the kernel does not tell, it always works."""
    stats = _stats()
    return sum(stats[member][2] for member in _family(pid, stats)) if stats else time.monotonic()


def _last_words(process: Process) -> str:
    """Have a process say where its threads stand, end it, and return all that it said."""
    _send_all(process, signal.SIGABRT)
    until = time.monotonic() + 5
    while process.left() and time.monotonic() < until:
        time.sleep(0.02)
    _send_all(process, signal.SIGKILL)
    return f"\nstdout:\n{process.stdout[-5000:]}\nstderr:\n{process.stderr[-10000:]}"


def _send_all(process: Process, number: signal.Signals) -> None:
    for member in process.left():
        with suppress(ProcessLookupError):
            os.kill(member, number)


@contextmanager
def _killed_unless_ended(process: Process) -> Iterator[None]:
    """Kill what is left of a process that is not waited for, or that a test has failed over."""
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or process.poll() is None:
            _send_all(process, signal.SIGKILL)
            while process.poll() is None:
                time.sleep(0.02)


@cache
def _server() -> subprocess.Popen[bytes]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}  # for select to see each answer
    server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=REPO, env=variables, **pipes)  # type: ignore[call-overload]
    atexit.register(server.communicate)
    return server
