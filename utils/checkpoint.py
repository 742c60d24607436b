"""Checkpoints: whole files only, and nothing that could run code.

A checkpoint is a dictionary of tensors, numbers, strings and plain containers, so it loads with ``weights_only=True``.
Files are written beside their target, flushed to the disk and renamed over it: whatever happens, a name holds either
the old contents or the new.
"""
import io
import os
import pickle
import platform
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

LAST, BEST = "checkpoint.pth.tar", "model_best.pth.tar"
RUN_FILES = (LAST, BEST, "log.txt", "log.png")


def write_atomically(path: Path, contents: bytes) -> None:
    """Replace ``path`` by ``contents``, never by a part of it.

    Raises:
        OSError: it cannot be written; the old file, if any, is still there.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(folder: Path, checkpoint: Mapping[str, Any], *, best: bool) -> None:
    """Write ``checkpoint`` as the last one of a run, and as its best one too if it is."""
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    for name in (LAST, BEST) if best else (LAST,):
        write_atomically(folder / name, buffer.getvalue())


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running anything that it may contain.

    Raises:
        ValueError: there is no such file, it is damaged, or it is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}: check the name given to --resume")
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError, TypeError,
            AttributeError, IndexError, AssertionError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{path} is damaged or no checkpoint and was not loaded ({reason}): "
                         f"resume from another file, such as {BEST}") from error
    if not (isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict)):
        raise ValueError(f"{path} is no checkpoint of a training script: it holds no state_dict")
    return checkpoint


# Old training scripts, the published ones among them, store accuracies as NumPy scalars, which are plain numbers.
NUMPY_SCALARS = [np._core.multiarray.scalar, np.dtype, *{type(np.dtype(t)) for t in (np.float32, np.float64, np.int64)}]


def load_model(model: torch.nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Load the weights of ``checkpoint`` into ``model``.

    Raises:
        ValueError: they are of another network or another number of classes; the sentence names both.
    """
    state, own = checkpoint["state_dict"], model.state_dict()
    theirs = checkpoint.get("network", {})
    named = theirs.get("name", type(model).__name__), theirs.get("num_classes", model.num_classes)
    ours = type(model).__name__, model.num_classes
    if named != ours:
        raise ValueError(f"{path} holds a {named[0]} with {named[1]} classes, but this run builds a {ours[0]} with "
                         f"{ours[1]} classes: use the script and --dataset that it was trained with")
    for name in [*own, *state]:
        found, expected = (tuple(d[name].shape) if torch.is_tensor(d.get(name)) else None for d in (state, own))
        if found != expected:
            raise ValueError(f"{path} does not fit the {ours[0]} of this run: {name} has shape {found} in the file and "
                             f"{expected} in the network; build the network that it was trained with")
    model.load_state_dict(state)


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def random_state() -> dict[str, Any]:
    """State of every random generator that a run may draw from, in plain types."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {"python": [version, list(numbers), gauss], "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
            "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go back to a state that :func:`random_state` returned; GPUs only if there are as many as then."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def open_folder(folder: Path, *, fresh: bool) -> None:
    """Make sure that a run can write to ``folder``; a fresh run first sets the files of an earlier one aside.

    Raises:
        ValueError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".writable", b"")
        (folder / ".writable").unlink()
        if fresh:
            set_aside(folder)
    except OSError as error:
        raise ValueError(f"cannot write checkpoints to {folder} ({error.strerror}): choose another with -c") from error


def set_aside(folder: Path) -> Path | None:
    """Move the files of an earlier run in ``folder`` to ``previous-1``, ``previous-2``, ...; return where, if any."""
    files = [folder / name for name in RUN_FILES if (folder / name).exists()]
    if not files:
        return None
    number = 1
    while (folder / f"previous-{number}").exists():
        number += 1
    target = folder / f"previous-{number}"
    target.mkdir()
    for file in files:
        file.rename(target / file.name)
    return target
