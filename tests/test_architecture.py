"""The house: what a file imports stands below it, as docs/architecture.md draws it.

Imports are read from the source, those inside functions and for type checkers included.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import commands
import pytest

PACKAGE = Path(__file__).parents[1] / "meta_exp"
BASE = ["config.checks", "config.keys", "terminal", "files", "installation"]
TASKS_AND_MODELS = ["tasks", "models"]
METHOD = ["hyper", "likelihoods", "adaptation", "curvature", "prediction", "algorithms", "scoring"]
STOREYS = [BASE, TASKS_AND_MODELS, METHOD, ["training"], ["runs"], ["comparison", "production"], ["commands"]]
BESIDE = {  # the rooms beside the stairs, and what they import
    "config.schema": BASE,
    "config.overrides": BASE,
    "cli": BASE,
}
MAY_ENTER = {  # and who imports them
    "config.schema": ["runs"],
    "config.overrides": ["runs", "commands"],
    "cli": ["runs.sweep", "runs.fit", "tasks.__main__", "commands"],
}
APART = [("tasks", "models"), ("comparison", "production")]  # on one storey, and neither imports the other
OUTSIDE = ["pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "matplotlib"]  # what the method does without


def modules():
    return {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")}


NAMES = {name.removesuffix(".__init__"): file for name, file in modules().items() if name != "__init__"}


def imports(name):
    """The modules that a file imports, below meta_exp without that prefix."""
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (path if path.removeprefix("meta_exp.") in NAMES else node.module for path in whole)


def ours(name):
    return {path.removeprefix("meta_exp.") for path in imports(name) if path.startswith("meta_exp.")}


def within(name, rooms):
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def storey(name):
    found = [number for number, rooms in enumerate(STOREYS) if within(name, rooms)]
    return found[0] if found else None


def test_every_file_has_its_room():
    bare = {"config", "__main__"}  # a package that holds a docstring, and the door, which imports nothing
    homeless = {name for name in NAMES if storey(name) is None and not within(name, BESIDE)} - bare
    assert not homeless


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_file_imports_what_stands_below_it(name):
    for other in ours(name):
        if within(other, BESIDE):
            (room,) = [room for room in BESIDE if within(other, [room])]
            assert within(name, MAY_ENTER[room]), f"{name} imports {other}"
        elif within(name, BESIDE):
            (room,) = [room for room in BESIDE if within(name, [room])]
            assert within(other, BESIDE[room]), f"{name} imports {other}"
        else:
            assert storey(other) <= storey(name), f"{name} imports {other}, which stands above it"
            for pair in (*APART, *(reversed(pair) for pair in APART)):
                one, two = pair
                assert not (within(name, [one]) and within(other, [two])), (
                    f"{name} imports {other}, which stands beside it"
                )


def room(name):
    rooms = [*BESIDE, *(room for rooms in STOREYS for room in rooms)]
    return next((room for room in rooms if within(name, [room])), name)


@pytest.mark.parametrize("place", [str, room], ids=["files", "rooms"])
def test_imports_make_no_circle(place):
    graph = {}
    for name in NAMES:
        graph.setdefault(place(name), set()).update({place(other) for other in ours(name)} - {place(name)})
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("rooms", [TASKS_AND_MODELS, METHOD], ids=["tasks and models", "the method"])
def test_the_method_needs_no_framework(rooms):
    for name in NAMES:
        if within(name, rooms) and not name.endswith(("__main__", "picture")):  # a picture imports when it draws
            assert not [path for path in imports(name) if within(path, OUTSIDE)], name
    script = f"import sys, {', '.join(f'meta_exp.{room}' for room in rooms)}\nprint(*sys.modules)"
    loaded = commands.finished([sys.executable, "-c", script]).stdout.split()
    assert "meta_exp" in loaded
    assert not [name for name in loaded if name in OUTSIDE]


def test_production_needs_no_comparison_to_run():
    """Nor a dashboard, nor the data sets' own package."""
    script = "import sys, meta_exp.production.command\nprint(*sys.modules)"
    loaded = commands.finished([sys.executable, "-c", script]).stdout.split()
    assert "meta_exp" in loaded
    assert not [name for name in loaded if within(name, ["meta_exp.comparison", "wandb", "learn2learn", "plotly"])]
