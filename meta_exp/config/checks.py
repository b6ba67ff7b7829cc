"""What every refusal of a setting looks like: the key, what was expected, what was given, and the remedy."""

NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def require(holds: bool, key: str, expected: str, got: object, remedy: str = "") -> None:
    """Raise ValueError ``key: expected X, got Y; remedy`` unless ``holds``."""
    if not holds:
        raise ValueError(f"{key}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else ""))


def one_line(said: BaseException | str) -> str:
    """Return a text, or what an error says, in one line; its type where it says nothing."""
    return " ".join(str(said).split()) or type(said).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of a GPU or of the machine, was not enough; PyTorch says the latter in words alone."""
    words = str(error)
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(part in words for part in NO_MEMORY))
