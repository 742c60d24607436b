"""Items that are the same each time, computed once."""
import mmap

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Kept(Dataset):
    """A dataset whose items are computed once, and kept in memory that all workers share, as far as they fit.

    Its items are pairs of a tensor, all of one shape and type, and a label, a whole number >= 0; nothing is random.
    """

    LIMIT = 2**28  # bytes

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        first, _ = dataset[0]
        size = min(len(dataset), self.LIMIT // (first.numel() * first.element_size()))
        self.inputs = _shared((size, *first.shape), first.dtype)
        self.labels = _shared((size,), torch.int64)  # plus 1, as memory starts with zeros

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(self.labels):
            return self.dataset[index]
        if not self.labels[index]:
            self.inputs[index], label = self.dataset[index]
            self.labels[index] = label + 1
        return self.inputs[index], int(self.labels[index]) - 1

    def __len__(self) -> int:
        return len(self.dataset)

    def __reduce__(self) -> tuple:
        return Kept, (self.dataset,)  # a process that was not forked cannot share it


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in memory that forked processes share, of which as much is used as is written."""
    size = torch.Size(shape).numel()
    return torch.frombuffer(mmap.mmap(-1, size * dtype.itemsize), dtype=dtype, count=size).view(shape)
