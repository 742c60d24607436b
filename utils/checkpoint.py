"""Checkpoint files: whole ones only, and nothing that could run code.

A checkpoint is a dictionary of tensors, numbers, strings and plain containers, so it loads with ``weights_only=True``.
"""
import io
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.errors import UserError
from utils.files import write_atomically
from utils.progress import say

LAST, BEST = "checkpoint.pth.tar", "model_best.pth.tar"
# Old training scripts, the published ones among them, store accuracies as NumPy scalars, which are plain numbers.
NUMPY_SCALARS = [np._core.multiarray.scalar, np.dtype, *{type(np.dtype(t)) for t in (np.float32, np.float64, np.int64)}]


class Stored(NamedTuple):
    """A checkpoint file and what it holds."""

    path: Path
    contents: dict[str, Any]
    stamp: tuple[int, int]

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the run that wrote it; none in a published checkpoint."""
        arguments = self.contents.get("arguments")
        return arguments if isinstance(arguments, dict) else {}

    def changed(self) -> bool:
        """Whether the file is another one now."""
        return not self.path.exists() or _stamp(self.path) != self.stamp


def save(checkpoint: Mapping[str, Any], *paths: Path) -> None:
    """Write the same checkpoint to each of some files."""
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    for path in paths:
        write_atomically(path, buffer.getvalue())


def itself(path: str | Path) -> Path:
    """The file, where ``path`` is a link to one: what else its run left lies beside that."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def load(path: str | Path) -> Stored:
    """Read a checkpoint without running anything in it; a UserError, if it is absent, damaged or no checkpoint."""
    path = itself(path)
    try:
        if not path.is_file():
            raise UserError(f"there is no checkpoint {path}: check the name given to --resume")
        path.open("rb").close()
        stamp = _stamp(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): see to it, or resume from another file") from error
    try:
        return Stored(path, _read(path), stamp)
    except UserError as error:
        reason = str(error)
    except Exception as error:  # whatever random bytes make the reader stumble over
        # More than data is refused; the message goes on with the advice to load it all the same.
        refused = re.search(r"(?:Unsupported|Trying to|GLOBAL) [^\n]*?(?=\. |\n|$)", str(error))
        reason = f"it is more than data: {refused[0][:160]}" if refused else f"{type(error).__name__} while reading"
    other = next((name for name in (LAST, BEST) if name != path.name and (path.parent / name).exists()), None)
    raise UserError(f"{path} is damaged or no checkpoint and was not loaded ({reason}): "
                    + (f"try {path.parent / other}" if other else "resume from another file"))


def find(resume: str | None, folder: Path) -> Stored | None:
    """The checkpoint that ``--resume`` means: a file, for 'auto' the newest good one in ``folder``, or none.

    The newest is the last one, or, if that is damaged, the best one; a UserError, if there is none that can be read.
    """
    if resume != "auto":
        return load(resume) if resume else None
    fault = None
    for path in filter(os.path.exists, (folder / LAST, folder / BEST)):
        try:
            return load(path)
        except UserError as error:
            fault = error
            say(f"warning: {error}")
    if fault:
        raise UserError(f"no checkpoint in {folder} can be read: {fault}") from fault
    return None


def _read(path: Path) -> dict[str, Any]:
    """The contents of a file, with a network under the name that we use, also if it is a bare one.

    A checkpoint is a zip archive with a checksum of each of its parts, which torch.load does not look at; those of old
    versions of PyTorch are no archives and have none. A UserError, if a checksum is wrong, or there is no network.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if bad := archive.testzip():
                raise UserError(f"the checksum of its part {bad} is wrong")
    with torch.serialization.safe_globals(NUMPY_SCALARS):
        contents = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(contents, dict):
        if contents and all(map(torch.is_tensor, contents.values())):
            return {"state_dict": contents}
        for name in ("state_dict", "model_state_dict", "model"):
            if isinstance(contents.get(name), dict):
                return {**contents, "state_dict": contents[name]}
    raise UserError("it holds no state_dict")


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
