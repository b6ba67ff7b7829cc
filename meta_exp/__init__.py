"""Gradient-based meta-learning with honest uncertainty: MAML and LLAMA as swappable configs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meta_exp.comparison.listing import results as results
    from meta_exp.production.fit import fit as fit
    from meta_exp.production.predictor import load as load

__all__ = ["fit", "load", "results"]


def __getattr__(name: str) -> Any:
    """Import ``fit``, ``load`` and ``results`` when they are first asked for: the package itself stays light."""
    if name == "fit":
        from meta_exp.production.fit import fit

        return fit
    if name == "load":
        from meta_exp.production.predictor import load

        return load
    if name == "results":
        from meta_exp.comparison.listing import results

        return results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
