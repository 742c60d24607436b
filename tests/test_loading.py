"""Data order and randomness as functions of seed, epoch and sample."""
import argparse
import os
import pickle
import socket

import pytest
import torch
from torch.utils.data import TensorDataset

from data import images
from data.kept import Kept
from utils.loading import Batches, derive_seed, make_loaders


def epoch(workers: int = 0, *, batch: int = 4, number: int = 2, seed: int = 5, skip: int = 0, rank: int = 0,
          ranks: int = 1) -> list[tuple]:
    """All samples of an epoch with a random augmentation: (index, augmented value, key)."""
    data = TensorDataset(torch.arange(10.0), torch.arange(10))
    args = argparse.Namespace(train_batch=batch, test_batch=3, workers=workers, test_limit=7)
    train, test = make_loaders(data, data, args, transform=lambda x: x + torch.rand(()), seed=seed, rank=rank,
                               ranks=ranks)
    assert ranks > 1 or sum(len(keys) for _, _, keys in test) == 7
    train.batch_sampler.start(number, skip)
    return [sample for values, labels, keys in train
            for sample in zip(labels.tolist(), values.tolist(), keys.tolist())]


def test_workers_batches_and_interruptions_change_nothing() -> None:
    """The same samples, in the same order, augmented alike, with the same keys."""
    torch.manual_seed(0)
    whole = epoch()
    torch.rand(7)  # the state of the global generator does not matter
    assert sorted(index for index, _, _ in whole) == list(range(10))
    assert epoch(2) == whole and epoch(batch=3) == whole and epoch(skip=4) == whole[4:]


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(index for index, _, _ in epoch(**change)) for change in ({}, {"number": 3}, {"seed": 6})}
    values = {value for change in ({}, {"number": 3}, {"seed": 6}) for _, value, _ in epoch(**change)}
    assert len(orders) == 3 and len(values) == 30


def test_augmentation_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    epoch()
    assert torch.equal(torch.rand(3), expected)


def test_derived_seeds() -> None:
    """In [0, 2^63), and no accidental sums: (1, 23) is not (12, 3)."""
    seeds = {derive_seed(a, b) for a in range(50) for b in range(50)} | {derive_seed(1, 23), derive_seed(12, 3)}
    assert len(seeds) == 2500 and all(0 <= seed < 2**63 for seed in seeds)


def test_order_is_a_permutation() -> None:
    batches = Batches(7, 3, seed=1)
    batches.start(4)
    assert sorted(sum(batches, [])) == [(4, index, True) for index in range(7)] and len(batches) == 3


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_shares_of_several_processes(ranks: int) -> None:
    """Together they are the batches of one process, in order; sizes differ by one at most; an empty share is filled."""
    whole = list(Batches(11, 4, seed=1))
    shares = [list(Batches(11, 4, seed=1, rank=rank, ranks=ranks)) for rank in range(ranks)]
    for number, batch in enumerate(whole):
        own = [[place for place in share[number] if place[2]] for share in shares]
        assert sum(own, []) == batch
        assert max(map(len, own)) - min(map(len, own)) <= 1
        assert all(share[number] for share in shares)
    samples = [sample for rank in range(ranks) for sample in epoch(rank=rank, ranks=ranks) if sample[2] >= 0]
    assert sorted(samples) == sorted(epoch())  # augmented alike, with the same keys


def test_test_data(monkeypatch) -> None:
    """In their order, as they are, so many of all parts or all that there are; no more workers than cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    data = TensorDataset(torch.arange(10.0), torch.arange(10))
    for limit, chosen in ((None, range(10)), (4, (0, 2, 5, 7)), (99, range(10))):
        args = argparse.Namespace(train_batch=4, test_batch=3, workers=4, test_limit=limit)
        train, test = make_loaders(data, data, args, transform=lambda x: x + 1, seed=5)
        assert (train.num_workers, test.num_workers, len(test.dataset)) == (1, 1, len(chosen))
        places = [place for batch in test.batch_sampler for place in batch]
        assert [test.dataset[place][:2] for place in places] == [(index, index) for index in chosen]


def test_digits() -> None:
    """1,797 images, split 80/20 with the same share of every class, disjoint and fixed."""
    train, test = (images.load("digits", "", train=half) for half in (True, False))
    assert (len(train), len(test)) == (1437, 360)
    counts = torch.bincount(torch.tensor([label for _, label in test]))
    assert counts.min() >= 35 and counts.max() <= 37
    picture, label = train[0]
    assert picture.size == (28, 28) and 0 <= label < 10
    pixels = {test.images[i].tobytes() for i in range(360)}
    assert sum(image.tobytes() in pixels for image in train.images) == 0
    # Published weights and results are of these very halves.
    assert [label for _, label in (test[i] for i in range(12))] == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]
    assert [sum(half[0][0].tobytes()) for half in (train, test)] == [59801, 54305]


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_data_without_a_network(name: str, tmp_path, monkeypatch) -> None:
    """One sentence that says where files belong, when the download fails; nobody waits for a firewall for ever."""
    waits = []

    def refuse(*_, **__):
        waits.append(socket.getdefaulttimeout())
        raise OSError("no route to host")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ValueError, match="could not be downloaded.*put its files there"):
        images.load(name, tmp_path, train=True)
    assert set(waits) == {images.CONNECT_TIMEOUT} and socket.getdefaulttimeout() is None


class Counted(TensorDataset):
    """Says in a file of its own for each item that it was computed, in whatever process."""

    def __init__(self, folder, *tensors):
        super().__init__(*tensors)
        self.folder = folder

    def __getitem__(self, index):
        with open(self.folder / str(index), "a") as file:
            file.write("x")
        value, label = super().__getitem__(index)
        return value, int(label)


@pytest.mark.parametrize("workers", [0, 2])
def test_items_without_randomness_are_computed_once(workers: int, tmp_path, monkeypatch) -> None:
    """By whichever worker needs one first; those that do not fit are computed again and again."""
    values = torch.arange(40.0).view(10, 4)
    monkeypatch.setattr(Kept, "LIMIT", 8 * 16)  # bytes: eight of ten items
    data = Kept(Counted(tmp_path, values, torch.arange(10)))
    args = argparse.Namespace(train_batch=4, test_batch=3, workers=workers, test_limit=None)
    train, _ = make_loaders(data, data, args, transform=None, seed=1)
    for number in range(3):
        train.batch_sampler.start(number)
        for found, labels, _ in train:
            assert torch.equal(found, values[labels])
    computed = [(tmp_path / str(index)).stat().st_size for index in range(10)]
    assert computed == [2] + [1] * 7 + [3, 3]  # the first one also to learn its shape
    assert torch.equal(pickle.loads(pickle.dumps(data))[9][0], values[9])
