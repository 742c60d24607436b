"""The compiled loops, loaded at first use: who does not simulate here neither needs Numba nor waits for it."""
import functools
import hashlib
import importlib
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from modules.engines.ring import missing

SOURCES = Path(__file__).parent
_lock = threading.Lock()


def obstacle() -> str | None:
    """Why there can be no compiled loops, or None."""
    if reason := missing("numba", "numba.extending"):
        return reason
    from numba import config
    return "NUMBA_DISABLE_JIT is set, and its loops are never interpreted" if config.DISABLE_JIT else None


@functools.cache
def load(name: str) -> ModuleType:
    """A module of compiled loops.

    Numba keeps what it compiled and knows it again by the file of a function, not by those that it calls. So what is
    kept goes to a folder named after the contents of all of them.
    """
    from numba import config
    with _lock:
        before, config.CACHE_DIR = config.CACHE_DIR, _folder(config.CACHE_DIR)
        try:
            return importlib.import_module(f"{__package__}.{name}")
        finally:
            config.CACHE_DIR = before


def jit(*, entry: bool = False, inline: bool = False) -> Callable[[Callable], Any]:
    """Numba's decorator as all loops have it; ``entry``: called from Python, and kept with all that it calls;
    ``inline``: always becomes a part of its callers."""
    from numba import config, njit
    # No reference counts, which threads would contend for: the loops allocate nothing.
    return njit(nogil=True, error_model="numpy", _nrt=False, forceinline=inline, no_cfunc_wrapper=True,
                no_cpython_wrapper=not entry, cache=entry and bool(config.CACHE_DIR))


def variants(make: Callable, setting: tuple, *others: tuple) -> Any:
    """A function for loops that calls the one of ``make(*setting)`` whose setting it gets before their arguments."""
    own, rest = make(*setting), variants(make, *others) if others else None

    @jit(inline=True)
    def call(wanted, *arguments):
        if rest is None or wanted == setting:
            own(*arguments)
        else:
            rest(wanted, *arguments)

    return call


@functools.cache
def _folder(chosen: str) -> str:
    """A folder for compiled loops: in the one that the user chose, or beside the sources, or in the user's cache; an
    empty string if nothing can be written there."""
    from numba.misc.appdirs import AppDirs
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    places = [chosen] if chosen else [SOURCES / "__pycache__", AppDirs("spide-fsnn", appauthor=False).user_cache_dir]
    for place in places:
        folder = Path(place) / f"loops-{digest.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return os.fspath(folder)
        except OSError:
            continue
    warnings.warn(f"the event engine compiles its loops anew in every process, as {' or '.join(map(str, places))} "
                  f"cannot be written to: set NUMBA_CACHE_DIR to a folder that can", stacklevel=4)
    return ""
