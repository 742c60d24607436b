"""Data order, augmentation and dropout as functions of seed, epoch and sample.

Neither the number of workers nor an interruption changes what a network sees: the order of an epoch depends on seed and
epoch alone; the random crop or flip of an image, and the key of its dropout masks, on seed, epoch and its index.
"""
import argparse
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from utils.errors import UserError
from utils.processes import follow_parent

Place = tuple[int, int, bool]  # epoch, index of a sample, and whether the sample counts


def derive_seed(*parts: int) -> int:
    """A seed in [0, 2^63) that depends on all ``parts``, unrelated for unequal ones."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Batches(Sampler[list[Place]]):
    """The batches of an epoch, or of each the share of one of several processes.

    Shares of a batch differ by at most one sample. A share that has none gets a sample that does not count, as every
    process takes part in every iteration.

    Args:
        size: number of samples; batch: how many make up a batch, over all processes; the last may be smaller.
        seed: of the run, for a random order; None for the order of the data.
        rank, ranks: number of this process, and of processes.
    """

    def __init__(self, size: int, batch: int, *, seed: int | None, rank: int = 0, ranks: int = 1) -> None:
        self.size, self.batch, self.seed, self.rank, self.ranks = size, batch, seed, rank, ranks
        self.epoch = self.skip = 0

    def start(self, epoch: int, skip: int = 0) -> None:
        """Make the next iteration that of ``epoch``, without its first ``skip`` samples."""
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[list[Place]]:
        order = list(range(self.size))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
            order = torch.randperm(self.size, generator=generator).tolist()
        for begin in range(self.skip, self.size, self.batch):
            whole = order[begin:begin + self.batch]
            own = whole[len(whole) * self.rank // self.ranks:len(whole) * (self.rank + 1) // self.ranks]
            yield [(self.epoch, index, True) for index in own] or [(self.epoch, whole[0], False)]

    def __len__(self) -> int:
        return -(-self.size // self.batch)


class Keyed(Dataset):
    """A dataset indexed by the places that :class:`Batches` yields, whose inputs may pass through a random transform.

    Items are input, label and key, a number in [0, 2^63) from which all that is random about the sample follows, or
    -1 for a sample that does not count.

    Args:
        dataset: pairs of input and label; seed: of the run; name: of the dataset, for messages.
        transform: draws its randomness from PyTorch's global generator, as torchvision's transforms do; or None.
    """

    def __init__(self, dataset: Dataset, transform: Callable[[Any], Any] | None, seed: int, name: str) -> None:
        self.dataset, self.transform, self.seed, self.name = dataset, transform, seed, name

    def __getitem__(self, place: Place) -> tuple[Any, Any, int]:
        epoch, index, counts = place
        image, label = self.dataset[index]
        key = derive_seed(self.seed, epoch, index) if counts else -1
        if self.transform is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(max(key, 0))
                image = self.transform(image)
        if torch.is_tensor(image) and not torch.isfinite(image).all():
            raise UserError(f"sample {index} of {self.name} holds numbers that are not finite: correct or leave out "
                            "that sample, or the transform that it passes through")
        return image, label, key

    def __len__(self) -> int:
        return len(self.dataset)


def spread(size: int, limit: int) -> list[int]:
    """At most ``limit`` indices, evenly over a data set: the first so many may be all of one class."""
    number = min(size, limit)
    return [place * size // number for place in range(number)]


def make_loaders(train: Dataset, test: Dataset, args: argparse.Namespace, *, transform: Callable[[Any], Any] | None,
                 seed: int, pin_memory: bool = False, **share: int) -> tuple[DataLoader, DataLoader]:
    """Loaders of training batches in random order, and of test batches in order; the last batch may be smaller.

    Args:
        train, test: pairs of input and label; transform: of training inputs, see :class:`Keyed`; seed: of the run.
        args: ``train_batch``, ``test_batch``, ``workers`` (processes for each loader), ``test_limit`` (of test
            samples, see :func:`spread`, or None for all).
        pin_memory: put batches where a GPU can fetch them; share: ``rank`` and ``ranks`` of :class:`Batches`.
    """
    for data, part in ((train, "training"), (test, "test")):
        if not len(data):
            raise UserError(f"there are no {part} samples: see to the data")
    workers = min(args.workers, len(os.sched_getaffinity(0)))  # more would only take turns: PyTorch warns of them

    def loader(data: Keyed, batches: Batches) -> DataLoader:
        # A loader draws a seed for its workers at each epoch: from a generator of its own, not from the run's.
        return DataLoader(data, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0,
                          pin_memory=pin_memory, worker_init_fn=follow_parent, generator=torch.Generator())

    if args.test_limit is not None:
        test = Subset(test, spread(len(test), args.test_limit))
    return (loader(Keyed(train, transform, seed, "the training data"),
                   Batches(len(train), args.train_batch, seed=seed, **share)),
            loader(Keyed(test, None, seed, "the test data"), Batches(len(test), args.test_batch, seed=None, **share)))
