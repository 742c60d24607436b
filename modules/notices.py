"""Warnings that are given once: what a person should hear of, but not at every call."""
import warnings

_given: set[tuple[str, ...]] = set()


def warn_once(*kind: str, sentence: str) -> None:
    """Give a warning, unless one of the same kind was given before in this process."""
    if kind not in _given:
        _given.add(kind)
        warnings.warn(sentence, stacklevel=3)


def forget() -> None:
    """Give every warning anew."""
    _given.clear()
