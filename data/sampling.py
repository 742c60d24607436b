"""Data order, augmentation and dropout as functions of seed, epoch and sample.

Neither the number of workers nor an interruption changes what a network sees: the order of an epoch depends on seed and
epoch alone; the random crop or flip of an image, and the key of its dropout masks, on seed, epoch and its index.
"""
import argparse
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset


def derive_seed(*parts: int) -> int:
    """A seed in [0, 2^63) that depends on all ``parts``, unrelated for unequal ones."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class EpochOrder(Sampler[tuple[int, int]]):
    """Random order of the samples of an epoch; yields pairs (epoch, index of the sample).

    Args:
        size: number of samples; seed: of the run.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch, self.skip = size, seed, 0, 0

    def start(self, epoch: int, skip: int = 0) -> None:
        """Make the next iteration that of ``epoch``, without its first ``skip`` samples."""
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator)[self.skip:].tolist()
        return iter([(self.epoch, index) for index in order])

    def __len__(self) -> int:
        return self.size


class Augmented(Dataset):
    """A dataset whose inputs pass through a random transform; indexed by (epoch, index) as :class:`EpochOrder` yields.

    Items are input, label and key, a number in [0, 2^63) from which all else that is random about the sample follows.

    Args:
        dataset: pairs of input and label; seed: of the run.
        transform: draws its randomness from PyTorch's global generator, as torchvision's transforms do.
    """

    def __init__(self, dataset: Dataset, transform: Callable[[Any], Any], seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Any, Any, int]:
        epoch, index = place
        image, label = self.dataset[index]
        key = derive_seed(self.seed, epoch, index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)
            return self.transform(image), label, key

    def __len__(self) -> int:
        return len(self.dataset)


def leave_signals_to_parent(worker: int) -> None:
    """Make a worker ignore the signals that end a run, which reach it too: its parent may want another batch first."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """End this process at a SIGTERM from its parent, and from nobody else."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_loaders(train: Dataset, test: Dataset, args: argparse.Namespace, *,
                 transform: Callable[[Any], Any]) -> tuple[DataLoader, DataLoader]:
    """Loaders of training batches in random order, and of test batches in order; the last batch may be smaller.

    Args:
        train, test: pairs of input and label.
        args: ``train_batch``, ``test_batch``, ``workers`` (processes for each loader), ``manualSeed``, ``test_limit``
            (use the first so many test samples, or None for all) and ``pin_memory`` (where a GPU can fetch it).
        transform: from a training input to the network's, random or not, see :class:`Augmented`.
    """
    if args.test_limit is not None:
        test = Subset(test, range(min(args.test_limit, len(test))))
    order = EpochOrder(len(train), args.manualSeed)
    # A loader draws a seed for its workers at each epoch: from a generator of its own, not from the run's.
    workers = min(args.workers, _cores())  # more would only take turns, and PyTorch warns of them
    shared = {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": args.pin_memory,
              "worker_init_fn": leave_signals_to_parent}
    return (DataLoader(Augmented(train, transform, args.manualSeed), args.train_batch, sampler=order,
                       generator=torch.Generator(), **shared),
            DataLoader(test, args.test_batch, generator=torch.Generator(), **shared))
