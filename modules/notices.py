"""Warnings that are given once: what a person should hear of, but not at every call."""
import warnings

GIVEN: set[tuple[str, ...]] = set()


def warn_once(*kind: str, sentence: str) -> None:
    """Give a warning, unless one of the same kind was given before in this process."""
    if kind not in GIVEN:
        GIVEN.add(kind)
        warnings.warn(sentence, stacklevel=3)
