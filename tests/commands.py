"""The commands in real processes that need not import everything anew: they are forked from one that has."""

import atexit
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

REPO = Path(__file__).parents[1]
TIMEOUT_S = 300
SERVER = f"""
import atexit, json, os, runpy, signal, sys, traceback
from meta_exp import cli

with cli.quick_imports():  # a child that collects what it inherits would copy all of it
    import hydra.main
    import meta_exp.comparison.compare, meta_exp.production.command, meta_exp.runs.train

for line in sys.stdin:
    if not (child := os.fork()):
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)
request = json.loads(line)
signal.alarm({TIMEOUT_S})
os.chdir(request["folder"])
os.environ.clear()
os.environ.update(request["variables"])
for stream, file in enumerate([os.devnull, *request["files"]]):
    os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), stream)
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


def run(script: str, folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` in ``folder`` with one thread, no account and no key."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    variables = {name: value for name, value in variables.items() if not name.startswith("WANDB")}
    command = [str(REPO / script), *map(str, arguments)]
    server = _server()
    with TemporaryDirectory() as place:
        files = [Path(place) / name for name in ("stdout", "stderr")]
        request = {"command": command, "folder": str(folder), "variables": variables, "files": list(map(str, files))}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, code, *(file.read_text() for file in files))


@cache
def _server() -> subprocess.Popen[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=REPO, env=variables, text=True, **pipes)
    atexit.register(server.communicate)
    return server
