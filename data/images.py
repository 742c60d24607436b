"""Image datasets: MNIST, Fashion-MNIST and CIFAR through torchvision, and scikit-learn's digits."""
import argparse
import hashlib
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from utils.loading import Kept, make_loaders

TORCHVISION = {"mnist": datasets.MNIST, "fashionmnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10,
               "cifar100": datasets.CIFAR100}
NUM_CLASSES = {"mnist": 10, "fashionmnist": 10, "cifar10": 10, "cifar100": 100, "digits": 10}
CONNECT_TIMEOUT = 20.0  # seconds; a machine behind a silent firewall should hear of it


def image_loaders(args: argparse.Namespace, *, mean: Sequence[float], std: Sequence[float],
                  augmentation: Sequence[Callable[[Any], Any]] = ()) -> tuple[DataLoader, DataLoader]:
    """Loaders of the training and test images of ``args.dataset``.

    Args:
        args: ``dataset``, ``path`` and what :func:`utils.loading.make_loaders` reads.
        mean, std: of each channel, for normalisation; augmentation: transforms of a training image before that.
    """
    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    test = Kept(load(args.dataset, args.path, train=False, transform=normalise))
    if augmentation:
        return make_loaders(load(args.dataset, args.path, train=True), test, args,
                            transform=transforms.Compose([*augmentation, normalise]))
    train = Kept(load(args.dataset, args.path, train=True, transform=normalise))
    return make_loaders(train, test, args, transform=None)


def load(name: str, root: str | Path, *, train: bool, transform: Callable[[Any], Any] | None = None) -> Dataset:
    """One half of a dataset, downloaded to ``root`` when it is not there.

    Args:
        name: 'mnist', 'fashionmnist', 'cifar10', 'cifar100' or 'digits'.
        root: folder of the data; train: the training or the test half.
        transform: applied to each PIL image, if given.

    Raises:
        ValueError: the data are missing and cannot be fetched, or a file is damaged; the sentence names it.
    """
    if name == "digits":
        return Digits(train=train, transform=transform)
    kind = TORCHVISION[name]
    try:
        with _connect_timeout(CONNECT_TIMEOUT):
            return kind(root, train=train, download=True, transform=transform)
    except Exception as error:  # torchvision reports a bad file or a failed download by almost any type
        damage = _find_damage(kind, Path(root))
        folder = _folder(kind, Path(root))
        if damage:
            raise ValueError(f"{damage}: delete it and run again with a network, or put a good copy there") from error
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{name} is not in {folder} and could not be downloaded ({reason}): fetch it elsewhere and "
                         f"put its files there, or name the folder that holds them with --path") from error


class Digits(Dataset):
    """Scikit-learn's 1,797 handwritten digits, 8x8 pixels enlarged to 28x28; a fixed stratified 80/20 split.

    Args:
        train: the training or the test part; transform: applied to each PIL image, if given.
    """

    classes = [str(digit) for digit in range(10)]

    def __init__(self, *, train: bool, transform: Callable[[Any], Any] | None = None) -> None:
        from sklearn.datasets import load_digits  # slow to import, and needed for this dataset alone
        from sklearn.model_selection import train_test_split

        images, targets = load_digits(return_X_y=True)
        pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        halves = train_test_split(pixels, targets, test_size=0.2, stratify=targets, random_state=0)
        pixels, self.targets = (halves[0], halves[2]) if train else (halves[1], halves[3])
        self.images = [Image.fromarray(p).resize((28, 28), Image.Resampling.BILINEAR) for p in pixels]
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        return image if self.transform is None else self.transform(image), int(self.targets[index])

    def __len__(self) -> int:
        return len(self.images)


def _folder(kind: type, root: Path) -> Path:
    """Where torchvision keeps the files of a dataset."""
    return root / kind.base_folder if hasattr(kind, "base_folder") else root / kind.__name__ / "raw"


def _find_damage(kind: type, root: Path) -> str | None:
    """The first file of a dataset that is there but cannot be right, in words, or None."""
    folder = _folder(kind, root)
    if hasattr(kind, "base_folder"):
        listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        present = [(folder / name, md5) for name, md5 in listed if (folder / name).exists()]
        for path, _ in present:
            if not _unpickles(path):
                return f"{path} is truncated or damaged"
        missing = next((folder / name for name, _ in listed if not (folder / name).exists()), None)
        if present and missing:
            return f"{missing} is missing, though other files of the dataset are there"
        for path, md5 in present:
            if hashlib.md5(path.read_bytes()).hexdigest() != md5:
                return f"{path} is not the published file (its md5 differs)"
        return None
    for path in sorted(folder.glob("*-ubyte")) if folder.is_dir() else []:
        contents = path.read_bytes()
        sizes = np.frombuffer(contents[4:4 + 4 * contents[3]], ">i4") if len(contents) > 8 else [-1]
        expected = 4 + 4 * len(sizes) + int(np.prod(sizes))
        if len(contents) != expected:
            return f"{path} is truncated or damaged ({len(contents)} bytes where its header announces {expected})"
    return None


def _unpickles(path: Path) -> bool:
    """Whether a CIFAR batch can be read and holds as many images as labels."""
    try:
        batch = pickle.loads(path.read_bytes(), encoding="latin1")
        return "data" not in batch or len(batch["data"]) == len(batch.get("labels", batch.get("fine_labels", ())))
    except Exception:  # a damaged pickle may raise anything
        return False


@contextmanager
def _connect_timeout(seconds: float) -> Iterator[None]:
    """Give up on connections that stay silent; torchvision sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
