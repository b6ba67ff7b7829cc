"""What every refusal of a setting looks like: the key, what was expected, what was given, and the remedy."""


def require(holds: bool, key: str, expected: str, got: object, remedy: str = "") -> None:
    """Raise ValueError ``key: expected X, got Y; remedy`` unless ``holds``."""
    if not holds:
        raise ValueError(f"{key}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else ""))
