"""What every refusal of a setting looks like: the key, what was expected, what was given, and the remedy."""

LONGEST = 200  # characters of what was given
NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def require(holds: bool, key: str, expected: str, got: object, remedy: str = "") -> None:
    """Raise ValueError ``key: expected X, got Y; remedy`` unless ``holds``."""
    if not holds:
        raise ValueError(f"{key}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else ""))


def require_at_most(most: float, key: str, got: float) -> None:
    """Raise ValueError unless ``got`` is at most ``most``: beyond it there is no computation that ends well."""
    require(got <= most, key, f"at most {most:g}", got)


def require_within(bounds: tuple[float, float], key: str, got: float) -> None:
    """Raise ValueError unless ``got`` is within ``bounds``, ends included."""
    low, high = bounds
    require(low <= got <= high, key, f"a number from {low:g} to {high:g}", got)


def one_line(said: BaseException | str) -> str:
    """Return a text, or what an error says, in one line; its type where it says nothing."""
    return " ".join(str(said).split()) or type(said).__name__


def shown(value: object) -> str:
    """Return ``value`` as it would be written in Python, cut where it is long."""
    words = repr(value)
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of a GPU or of the machine, was not enough; PyTorch says the latter in words alone."""
    words = str(error)
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(part in words for part in NO_MEMORY))
