"""What every refusal of a setting looks like: the key, what was expected, what was given, and the remedy."""


def require(holds: bool, key: str, expected: str, got: object, remedy: str = "") -> None:
    """Raise ValueError ``key: expected X, got Y; remedy`` unless ``holds``."""
    if not holds:
        raise ValueError(f"{key}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else ""))


def one_line(said: BaseException | str) -> str:
    """Return a text, or what an error says, in one line; its type where it says nothing."""
    return " ".join(str(said).split()) or type(said).__name__
