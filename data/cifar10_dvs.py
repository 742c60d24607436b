"""CIFAR10-DVS: 10,000 CIFAR-10 images moved in front of an event camera (Li et al., Frontiers in Neuroscience, 2017).

:mod:`data.dvs_files` says how recordings may lie on the disk. The frames made of them are kept in a folder beside, one
file for each recording; with all frames there, the recordings may be deleted.
"""
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.dvs_convert import cache_folder, cached, convert
from data.dvs_files import CLASSES, PER_CLASS, dataset_folder, fetch, find_recordings
from utils.errors import UserError

TRAIN_PER_CLASS = 900


class CIFAR10DVS(Dataset):
    """Recordings as frames; numbers 0-899 of each class train, 900-999 test, however many of them are there.

    Whatever is missing is downloaded and converted first; a UserError, if that cannot be had, or is damaged, or there
    are none in this part. See :func:`data.dvs_files.fetch` and :func:`data.dvs_convert.convert`.

    Args:
        root: folder that holds, or is to hold, the folder ``cifar10-dvs``, or that folder itself.
        train: the training or the test part; download: fetch what is missing.
        frames: of a recording; transform: name in :data:`data.frames.TRANSFORMS`; size: pixels of a side.
        cache: folder for the frames, where they should not be kept with the recordings.
    """

    classes = list(CLASSES)

    def __init__(self, root: str | Path, *, train: bool, frames: int = 30, transform: str = "reference",
                 download: bool = True, size: int = 48, cache: str | Path | None = None) -> None:
        settings = {"frames": frames, "transform": transform, "size": size, "cache": cache}
        folder = cache_folder(root, **settings)
        found, ready = (Counter(name for name, _ in keys) for keys in (find_recordings(root), cached(folder)))
        if absent := [name for name in CLASSES if not found[name] and ready[name] < PER_CLASS]:
            fetch(root, absent, download=download)
        convert(root, **settings)
        paths = cached(folder)
        if len(paths) < PER_CLASS * len(CLASSES):
            warnings.warn(f"{folder} holds {len(paths)} of {PER_CLASS * len(CLASSES)} recordings", stacklevel=2)
        keys = sorted(key for key in paths if (key[1] < TRAIN_PER_CLASS) == train)
        if not keys:
            numbers = f"0-{TRAIN_PER_CLASS - 1}" if train else f"{TRAIN_PER_CLASS}-{PER_CLASS - 1}"
            raise UserError(f"no {'training' if train else 'test'} recordings, numbers {numbers} of a class, are in "
                            f"{dataset_folder(root)}: put some there")
        self.paths = [paths[key] for key in keys]
        self.targets = [CLASSES.index(name) for name, _ in keys]
        self.shape = (frames, 2, size, size)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Frames, float32 (frames, 2, size, size) in [0, 1], and label; a UserError where their file is damaged."""
        path = self.paths[index]
        try:
            frames = np.load(path)
            if frames.shape != self.shape:
                raise ValueError(f"it holds {frames.shape}, not {self.shape}")
        except Exception as error:  # NumPy raises almost anything over a damaged header
            raise UserError(f"{path} is damaged ({error}): delete it and run again, to convert it anew") from error
        return torch.from_numpy(frames).float() / (255 if frames.dtype == np.uint8 else 1), self.targets[index]

    def __len__(self) -> int:
        return len(self.paths)
