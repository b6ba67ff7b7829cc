"""The constructor is the schema: a config group names a class, and its keys are that constructor's parameters.

A key that the constructor does not know is refused by name with the nearest one it knows, and a value that its
annotation does not admit with what was expected.
"""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any, get_type_hints

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from meta_exp.config.checks import require
from meta_exp.config.keys import within

FOREIGN = ("torch", "pytorch_lightning")  # whose annotations are not meant for this


def constructor(part: DictConfig, group: str) -> partial[Any]:
    """Return the constructor that the config ``part`` of ``group`` names, with the part's values filled in.

    Raises:
        ValueError: no constructor is named, a key is unknown, or a value is of the wrong type.
    """
    require("_target_" in part, f"{group}._target_", "the class that it chooses", "none", f"choose one by {group}=NAME")
    filled: partial[Any] = instantiate(part, _partial_=True, _convert_="all")
    parameters = inspect.signature(filled.func).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in filled.keywords:
            near = get_close_matches(key, parameters, 1) or parameters
            remedy = f"did you mean {', '.join(near)}?"
            require(key in parameters, f"{group}.{key}", "a known key", "an unknown one", remedy)
    if not within(filled.func.__module__, FOREIGN):
        _check_types(filled.func, filled.keywords, f"{group}.")
    return filled


def from_keys(target: Callable[..., Any], cfg: DictConfig, *keys: str) -> Callable[..., Any]:
    """Return ``target`` with the top-level ``keys`` of the config filled in; raises ValueError for a wrong type.

    A key that the config of an older run lacks takes its default.
    """
    found = {key: cfg[key] for key in keys if key in cfg}
    values = {key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for key, value in found.items()}
    _check_types(target, values, "")
    return partial(target, **values)


def _check_types(target: Callable[..., Any], values: dict[str, Any], prefix: str) -> None:
    """Raise ValueError where one of ``values`` is not what the annotation of ``target``'s parameter admits."""
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # of a class of one's own, whose annotations may be for type checkers alone
        return
    for key, value in values.items():
        if key not in hints:
            continue
        try:
            TypeAdapter(hints[key], config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        except ValidationError as error:
            expected = error.errors()[0]["msg"].removeprefix("Input should be ")
            require(False, f"{prefix}{key}", expected, repr(value))
