"""The check that every network makes of its integer arguments."""

import operator


def at_least(minimum: int, name: str, value: int, model: str) -> int:
    """``value`` as an int; ``ValueError`` if it is no integer or below ``minimum``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum:
        raise ValueError(f"{name}: {model} expected an integer >= {minimum}, got {value!r}")
    return number
