"""Checkpoints: whole files only, and nothing that could run code.

A checkpoint is a dictionary of tensors, numbers, strings and plain containers, so it loads with ``weights_only=True``.
"""
import io
import platform
import random
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.files import BEST, LAST, write_atomically
from utils.progress import say


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
    reason = _fault(path)
    if reason is None:
        try:
            with torch.serialization.safe_globals(NUMPY_SCALARS):
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict"), dict):
                return checkpoint
            reason = "it holds no state_dict"
        except Exception as error:  # whatever random bytes make the reader stumble over
            reason = _refusal(str(error)) or f"{type(error).__name__} while reading"
    other = next((name for name in (LAST, BEST) if name != path.name and (path.parent / name).exists()), None)
    raise ValueError(f"{path} is damaged or no checkpoint and was not loaded ({reason}): "
                     + (f"try {path.parent / other}" if other else "resume from another file"))


def newest_good(folder: Path) -> Path | None:
    """The file to go on from in the folder of a run: its last checkpoint, or, if that is damaged, its best one.

    Raises:
        ValueError: there are checkpoints, but none that can be read.
    """
    fault = None
    for path in (folder / name for name in (LAST, BEST) if (folder / name).exists()):
        try:
            load(path)
        except ValueError as error:
            fault = error
            continue
        if fault:
            say(f"warning: {fault}")
        return path
    if fault:
        raise ValueError(f"no checkpoint in {folder} can be read: {fault}") from fault
    return None


def _fault(path: Path) -> str | None:
    """What is wrong with a file that should hold the bytes it was written with, or None.

    A checkpoint is a zip archive with a checksum of each of its parts, which torch.load does not look at. Checkpoints
    of old versions of PyTorch are no archives and have none.
    """
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return bad and f"the checksum of its part {bad} is wrong"
    except Exception as error:  # whatever random bytes make the reader stumble over
        return f"{type(error).__name__} while reading"


def _refusal(message: str) -> str | None:
    """Why ``torch.load`` did not load something that is more than data, without its advice to load it all the same."""
    match = re.search(r"(?:Unsupported|Trying to|GLOBAL) [^\n]*?(?=\. |\n|$)", message)
    return match and f"it is more than data: {match[0][:160]}"


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
