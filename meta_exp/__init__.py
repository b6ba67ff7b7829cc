"""Gradient-based meta-learning with honest uncertainty: MAML and LLAMA as swappable configs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meta_exp.production.predictor import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import ``load`` when it is first asked for: the package itself stays light."""
    if name == "load":
        from meta_exp.production.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
