"""Gradient-based meta-learning with honest uncertainty: MAML and LLAMA as swappable configs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meta_exp.production.fit import fit as fit
    from meta_exp.production.predictor import load as load

__all__ = ["fit", "load"]


def __getattr__(name: str) -> Any:
    """Import ``fit`` and ``load`` when they are first asked for: the package itself stays light."""
    if name == "fit":
        from meta_exp.production.fit import fit

        return fit
    if name == "load":
        from meta_exp.production.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
