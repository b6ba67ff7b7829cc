"""The constructor is the schema: a config group names a class, and its keys are that constructor's parameters.

A key that the constructor does not know is refused by name with the nearest one it knows, and a value that its
annotation does not admit with what was expected. Others are converted to what the annotation says, so that 1e3 is a
number of tasks: what is built, saved and compared is the converted value.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, partial
from typing import Any, get_type_hints

from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from meta_exp.config.checks import one_line, require, shown

TARGET = "_target_"
BITS = 63  # of an integer: a longer one is a slip, and no count, seed or size
CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False, coerce_numbers_to_str=True)


def constructor(part: Any, group: str, kind: type = object, given: Sequence[str] = ()) -> partial[Any]:
    """Return the constructor that the config ``part`` of ``group`` names, with the part's values filled in.

    Args:
        part: a class by its name, ``_target_``, and values of its parameters.
        group: the dotted key at which the part stands.
        kind: what the class has to be a subclass of; a function is taken at its word.
        given: parameters that its caller fills in, and the config may not.

    Raises:
        ValueError: no constructor is named, a key is unknown or missing, or a value is of the wrong type.
    """
    named = OmegaConf.is_dict(part) and TARGET in part
    remedy = "" if "." in group else f"choose one by {group}=NAME"
    require(named, f"{group}.{TARGET}", "the class that it chooses", "none", remedy)
    target = _locate(part[TARGET], f"{group}.{TARGET}", kind)
    parameters = inspect.signature(target).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = [name for name in parameters if name not in given]
    for key in map(str, part):
        if key != TARGET and (key.startswith("_") or key in given or not (anything or key in known)):
            remedy = f"did you mean {', '.join(get_close_matches(key, known, 1) or known)}?" if known else ""
            require(False, f"{group}.{key}", "a known key", "an unknown one", remedy)
        require(not OmegaConf.is_missing(part, key), f"{group}.{key}", "a value", "none")
    takes = anything or all(name in parameters for name in given)
    require(takes, f"{group}.{TARGET}", f"a class that takes {', '.join(given)}", _name(target))
    for name, parameter in parameters.items():
        wanted = parameter.default is parameter.empty and name not in given
        wanted = wanted and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        require(not wanted or name in part, f"{group}.{name}", "a value", "none")
    try:
        filled: partial[Any] = instantiate(part, _partial_=True, _convert_="all")
    except HydraException as error:
        raise ValueError(f"{group}: expected values that can be built, got {one_line(error)}") from error
    return partial(target, **_converted(target, filled.keywords, f"{group}."))


def from_keys(target: Callable[..., Any], cfg: DictConfig, *keys: str) -> partial[Any]:
    """Return ``target`` with the top-level ``keys`` of the config filled in; raises ValueError for a wrong type.

    A key that the config of an older run lacks takes its default.
    """
    present = list(cfg)  # also where the value is missing, which is refused
    parameters = inspect.signature(target).parameters
    for key in keys:
        wanted = parameters[key].default is inspect.Parameter.empty
        require(key in present or not wanted, key, "a value", "none")
    found = {key: cfg[key] for key in keys if key in present}
    values = {key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for key, value in found.items()}
    return partial(target, **_converted(target, values, ""))


def take(cfg: DictConfig, values: Mapping[str, Any]) -> None:
    """Put converted ``values`` into the config, where they are plain; objects were described there by their parts."""
    for key, value in values.items():
        plain = list(value) if isinstance(value, tuple) else value
        if plain is None or isinstance(plain, bool | int | float | str | list):
            cfg[key] = plain


def _locate(name: Any, key: str, kind: type) -> Any:
    """Return the class or function of a dotted ``name``; importing it may raise anything."""
    require(isinstance(name, str), key, "the name of a class", shown(name))
    try:
        target = get_object(name)
        inspect.signature(target)
    except Exception as error:
        raise ValueError(f"{key}: expected the name of a class, got {shown(name)}") from error
    fits = not inspect.isclass(target) or issubclass(target, kind)
    require(fits, key, f"a subclass of {_name(kind)}", name)
    return target


def _name(target: Any) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def _converted(target: Callable[..., Any], values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return ``values`` as the annotations of ``target``'s parameters have them, or raise ValueError by their key."""
    hints = _hints(target)
    return {key: _convert(hints.get(key, Any), value, f"{prefix}{key}") for key, value in values.items()}


@cache
def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # of somebody else's, who imports types for a type checker alone
        return {}


def _convert(hint: Any, value: Any, key: str) -> Any:
    _refuse_long(value, key)
    try:
        converted = TypeAdapter(hint, config=CONFIG).validate_python(value)
    except ValidationError as error:
        found = [_expected(one["msg"], hint) for one in error.errors()]
        raise ValueError(f"{key}: expected {' or '.join(dict.fromkeys(found))}, got {shown(value)}") from error
    except PydanticUserError:  # an annotation of somebody else's that is no type of values
        return value
    require(_as_meant(value, converted), key, _form(hint), shown(value))
    return converted


def _refuse_long(value: Any, key: str) -> None:
    """Raise ValueError at an integer of more than 64 bits, also within a list."""
    if isinstance(value, list):
        for part in value:
            _refuse_long(part, key)
    elif isinstance(value, int):
        require(value.bit_length() <= BITS, key, "a number within 64 bits", shown(value))


def _as_meant(value: Any, converted: Any) -> bool:
    """Whether no boolean became a number or a word, which pydantic admits."""
    if isinstance(value, list) and isinstance(converted, list | tuple):
        return all(map(_as_meant, value, converted))
    return not isinstance(value, bool) or isinstance(converted, bool)


def _expected(message: str, hint: Any) -> str:
    """Return what pydantic expected, in words that fit a refusal."""
    if not message.startswith("Input should be "):
        return _form(hint)
    return re.sub(r", (unable|got) .*", "", message.removeprefix("Input should be "))


def _form(hint: Any) -> str:
    return f"a value of the form {inspect.formatannotation(hint)}"
