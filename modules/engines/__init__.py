"""Simulation engines: interchangeable implementations of the two simulations of SPIDE, as ``dense`` defines them."""
import functools
from types import ModuleType

import torch

from modules.engines.cuda.engine import PRECISIONS, CudaEngine
from modules.engines.dense import DENSE
from modules.engines.event.engine import EventEngine
from modules.engines.interface import BackwardResult, Engine, EngineError, ForwardResult
from modules.engines.memory import Yielding, out_of_memory
from modules.notices import warn_once

__all__ = ["NAMES", "PRECISIONS", "BackwardResult", "Engine", "EngineError", "ForwardResult", "describe",
           "out_of_memory", "register", "require", "select"]

NAMES = ("auto", "dense", "event", "cuda")  # auto and cuda may carry a precision, as cuda:bf16
FASTEST = {"cpu": "event", "cuda": "cuda"}  # what auto takes, by the kind of device; dense on any other
_REGISTRY: dict[str, Engine] = {}


def register(engine: Engine) -> None:
    """Make an engine known by its name; a ValueError if that is taken, a TypeError if it is none."""
    require(engine)
    if engine.name in _REGISTRY:
        raise ValueError(f"there is an engine '{engine.name}' already: give this one another name")
    _REGISTRY[engine.name] = engine


def select(engine: str | Engine, device: torch.device) -> Engine:
    """The engine that a name stands for on ``device``; an engine as it is.

    Names are ``auto``, for the fastest one for ``device``, ``dense``, ``event``, ``cuda``, and registered ones.
    ``cuda`` and ``auto`` may be followed by a precision of the engine for GPUs, as in ``cuda:bf16``, tf32 by default.
    That engine is tried on the device first, see :mod:`modules.engines.trial`, once in a process.

    Raises:
        ValueError: there is no engine, or no precision, of that name; TypeError: the object is no engine.
        EngineError: the engine for GPUs, given by name, failed its trial.
    """
    return _select(engine, device)[0]


def describe(engine: str | Engine, device: torch.device) -> str:
    """Name of the engine that simulates on ``device``, and whether it was tried there; errors as of :func:`select`."""
    found, proved = _select(engine, device)
    return f"{found.name} (proved on this device)" if proved else found.name


def _select(engine: str | Engine, device: torch.device) -> tuple[Engine, bool]:
    """The engine, and whether it passed a trial."""
    found = require(engine)
    kind = engine.partition(":")[0] if isinstance(engine, str) else None
    if kind not in ("auto", "cuda"):
        return found, False
    name = "cuda" if kind == "cuda" else FASTEST.get(device.type, "dense")
    fast = found if name == "cuda" else _REGISTRY[name]
    reason = None if fast is DENSE else fast.obstacle(device, torch.float32)
    if kind == "cuda" and reason is not None:
        return fast, False  # it says so itself, and leaves its work to the dense engine
    if reason is None and name == "cuda":
        from modules.engines import trial  # which builds networks, and so stands above the engines

        own = torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device
        reason = trial.verdict(fast, own)
    if reason is None:
        return (_yielding(fast, device) if kind == "auto" and name == "cuda" else fast), name == "cuda"
    if kind == "cuda":
        raise EngineError(f"the engine {fast.name} cannot be used here: {reason}")
    warn_once("auto", fast.name, sentence=f"engine 'auto' takes dense, which is several times slower, in place of "
                                          f"{fast.name}: {reason}")
    return DENSE, False


_yielding = functools.cache(lambda engine, device: Yielding(engine))


def require(engine: str | Engine) -> Engine:
    """The engine of a name, for ``auto`` that for GPUs; or the object itself. Errors as of :func:`select`."""
    if isinstance(engine, str):
        kind, _, precision = engine.partition(":")
        name = f"cuda:{precision or 'tf32'}" if kind in ("auto", "cuda") else engine
        if name in _REGISTRY:
            return _REGISTRY[name]
        if kind in ("auto", "cuda"):
            raise ValueError(f"there is no precision '{precision}'; choose one of {', '.join(PRECISIONS)}")
        own = [name for name in _REGISTRY if name.partition(":")[0] not in NAMES]
        raise ValueError(f"there is no engine '{engine}'; choose one of {', '.join((*NAMES, *own))}")
    lacking = [part for part in ("name", "simulate_forward", "simulate_backward") if not hasattr(engine, part)]
    if isinstance(engine, ModuleType) or lacking:
        what = f"the module {engine.__name__}" if isinstance(engine, ModuleType) else f"a {type(engine).__name__}"
        raise TypeError(f"{what} is no engine: give an object with a name, simulate_forward and simulate_backward"
                        + (f" (it lacks {', '.join(lacking)})" if lacking else ""))
    return engine


for _engine in (DENSE, EventEngine(), *(CudaEngine(precision) for precision in PRECISIONS)):
    register(_engine)
