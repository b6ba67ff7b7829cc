"""The words of a command, ``key=value`` in Hydra's grammar: read one by one, so that a slip has its name."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from meta_exp.config.checks import one_line, require, shown

SEVERAL = ("logger",)  # groups of which a run may have several options


def parse(words: Sequence[str]) -> list[Override]:
    """Return the overrides that ``words`` are.

    Raises:
        ValueError: one is none; with what to do.
    """
    parser = OverridesParser.create()
    return [_parse(parser, word) for word in words]


def check_words(words: Sequence[str], conf: Path) -> None:
    """Raise ValueError where one of ``words`` is no override, or none that the groups of the folder ``conf`` take."""
    groups = {str(file.parent.relative_to(conf)) for file in conf.rglob("*.yaml")}
    for override in parse(words):
        group = override.key_or_group
        if group not in groups or override.is_delete() or override.is_sweep_override():
            continue
        value = override.value()
        chosen = value if isinstance(value, list) and group in SEVERAL else [value]
        named = all(isinstance(option, str) and option for option in chosen)
        options = ", ".join(sorted(file.stem for file in (conf / group).glob("*.yaml")))
        require(named, group, f"the name of an option ({options})", shown(value))


def _parse(parser: OverridesParser, word: str) -> Override:
    key, equals, value = word.partition("=")
    require(bool(key.strip()) and bool(equals or key.startswith("~")), shown(word), "key=value", "no key or no value")
    try:
        [override] = parser.parse_overrides([word])
    except HydraException as error:
        said = one_line(str(error).partition("\nSee ")[0])
        text = value.strip("\"' ").replace('"', r"\"")
        remedy = f"a list is {key.strip()}=[a,b], and text with signs of its own takes quotes within the shell's: "
        remedy += f"""'{key.strip()}="{text}"'"""
        remedy = remedy if key == key.strip() else f"leave out the blanks: {key.strip()}={value.strip()}"
        raise ValueError(f"{word}: expected key=value in Hydra's grammar, got {said}; {remedy}") from error
    return override
