"""Which classes a config may name: those of a group's own modules, and those of modules that the user trusts.

    trust=[my_package]                      train.py and evaluate.py, beside any other key
    META_EXP_TRUST=my_package,my_net        the environment, for all commands
    meta_exp.load(run, trust="my_package")  Python

A trusted module is imported, with all that it does when it is imported, wherever a config names it or a module below
it; its classes may then stand in any group whose kind they are of. The word comes from whoever runs a command and never
from a saved config, which may be a stranger's. What is trained is held to the same rules before it begins, so that
nobody trains what could not be restored.

Trainer, loggers and callbacks are never built from a saved config. Those of meta_exp's own names are its own classes;
others need no permission.
"""

import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from meta_exp.algorithms import Algorithm
from meta_exp.config.checks import one_line, require
from meta_exp.config.keys import within
from meta_exp.curvature import Curvature
from meta_exp.likelihoods import Likelihood

VARIABLE = "META_EXP_TRUST"
MODULES = {  # whose classes a config may name in a group
    "dataset": "meta_exp.tasks",
    "model": "meta_exp.models",
    "likelihood": "meta_exp.likelihoods",
    "curvature": "meta_exp.curvature",
    "algorithm": "meta_exp.algorithms",
    "optimizer": "torch.optim",
    "lr_schedule": "meta_exp.training",
}
NEVER_BUILT = {  # from a saved config: the groups that only a training needs
    "trainer": ("pytorch_lightning",),
    "logger": ("meta_exp.training.loggers", "pytorch_lightning.loggers"),
    "callbacks": ("meta_exp.training.checkpoints", "meta_exp.training.progress"),
}
OURS = ("best", "last", "progress", "csv", "tensorboard", "wandb")  # callbacks and loggers of meta_exp's own names
SCORES = "scores"  # of one's own, by name: scores.NAME._target_
KINDS: dict[str, type] = {  # of the classes of a group
    "model": nn.Module,
    "likelihood": Likelihood,
    "curvature": Curvature,
    "algorithm": Algorithm,
    "optimizer": Optimizer,
}
METHODS = {"dataset": "draw", "lr_schedule": "factor", SCORES: "__call__"}  # where classes have no base in common


def trusted_modules(given: str | Sequence[str] | None = ()) -> tuple[str, ...]:
    """Return the modules that are ``given``, one or several, and those of META_EXP_TRUST.

    Where there are any, the working folder is put at the end of Python's path.

    Raises:
        ValueError: a name is none of a module.
    """
    words = [given] if isinstance(given, str) else list(given or ())
    named = [("trust", word) for word in words]
    named += [(VARIABLE, word.strip()) for word in os.environ.get(VARIABLE, "").split(",") if word.strip()]
    for key, word in named:
        require(_is_name(word), key, "names of modules, as in trust=[my_package]", repr(word))
    if named and os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    return tuple(dict.fromkeys(word for _, word in named))


def refuse_unsafe(cfg: Any, trust: Sequence[str] = (), file: object = None) -> None:
    """Raise ValueError at an interpolation, a key that steers Hydra, or a class that may not be named.

    Args:
        cfg: a whole config, as plain containers.
        trust: the modules of one's own.
        file: where the config was read, if anywhere.
    """
    for path, value in walk(cfg):
        where = ".".join(path) if file is None else f"{file}: {'.'.join(path)}"
        if isinstance(value, str):
            require("${" not in value, where, "a plain value", repr(value))
        if _is_never_built(path):
            continue
        if path[-1] == "_target_":
            _refuse_class(path, value, trust, where)
        elif path[-1].startswith("_") and path[-1].endswith("_"):
            require(False, where, "no key that steers Hydra", repr(value))


def walk(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path of each place below ``node`` with what stands there."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        here = (*path, str(key))
        yield here, value
        yield from walk(value, here)


def _is_never_built(path: tuple[str, ...]) -> bool:
    """Whether what stands at ``path`` is one's own in a group that is never built from a saved config."""
    if path[0] == "trainer":
        return len(path) > 2
    return path[0] in NEVER_BUILT and len(path) > 2 and path[1] not in OURS


def _refuse_class(path: tuple[str, ...], target: object, trust: Sequence[str], where: str) -> None:
    """Raise ValueError unless ``target`` is a class that may stand at ``path``, of the kind of its group."""
    group, depth = path[0], len(path)
    owner, _, name = str(target).rpartition(".")
    built = (*MODULES, SCORES)
    own = (MODULES[group],) if group in MODULES and depth == 2 else NEVER_BUILT.get(group, ())
    trusted = group in built and within(owner, trust)
    if not trusted and owner not in own:
        expected = f"a class of {' or '.join(own)}" if own else "a class of one's own" if group in built else "no class"
        require(False, where, expected, target, _word_to_add(owner) if group in built else "")
    module = _import(owner, where)
    found = vars(module).get(name)
    home = [owner] if not trusted else list(trust)
    held = inspect.isclass(found) and within(found.__module__, home)
    classes = [key for key, value in vars(module).items() if inspect.isclass(value) and within(value.__module__, home)]
    remedy = "".join(f"did you mean {owner}.{near}?" for near in get_close_matches(name, classes, 1))
    require(held, where, f"a class of {owner}", target, remedy)
    assert inspect.isclass(found)
    if depth != (3 if group == SCORES else 2):
        return  # a part of another class, whose constructor says what it takes
    if group in KINDS:
        kind = KINDS[group]
        require(issubclass(found, kind), where, f"a class derived from {kind.__module__}.{kind.__name__}", target)
    if group in METHODS:
        method = METHODS[group]
        offers = any(method in vars(base) for base in found.__mro__)
        require(offers, where, f"a class with a method {method}", target)


def _import(name: str, where: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not within(name, [error.name]):
            raise ValueError(f"{where}: expected a module that imports, got {name}: {one_line(error)}") from error
        remedy = f"it is looked for in what is installed, and in {os.getcwd()}"
        raise ValueError(f"{where}: expected a module {name}, got none; {remedy}") from error
    except Exception as error:  # it is the user's own code, which may fail in any way
        said = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{where}: expected a module that imports, got {name}: {said}") from error


def _word_to_add(owner: str) -> str:
    """Return what lets a config name classes of ``owner``, unless that is Python's own or ours."""
    package = owner.partition(".")[0]
    known = not package or package in sys.stdlib_module_names or package in ("meta_exp", "torch", "pytorch_lightning")
    return "" if known else f"if you know this code and trust it, add trust=[{package}]"


def _is_name(word: object) -> bool:
    return isinstance(word, str) and all(part.isidentifier() for part in word.split("."))
