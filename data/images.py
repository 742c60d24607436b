"""Image datasets: MNIST, Fashion-MNIST and CIFAR through torchvision, scikit-learn's digits, images of one's own."""
import hashlib
import re
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets, transforms

from data.kept import Kept
from utils.errors import UserError
from utils.files import plain, subfolders
from utils.progress import say

TORCHVISION = {"mnist": datasets.MNIST, "fashionmnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10,
               "cifar100": datasets.CIFAR100}
NUM_CLASSES = {"mnist": 10, "fashionmnist": 10, "cifar10": 10, "cifar100": 100, "digits": 10}
Transform = Callable[[Any], Any]
CONNECT_TIMEOUT = 20.0  # seconds; a machine behind a silent firewall should hear of it


def normalised(name: str, root: str | Path, *, mean: Sequence[float], std: Sequence[float],
               augmentation: Sequence[Transform] = ()) -> tuple[Dataset, Dataset, Transform | None]:
    """Training images, test images, and the transform of the former, None where nothing of it is random.

    Images that are the same in each epoch are transformed once. ``name`` and ``root`` are those of :func:`load`;
    ``augmentation`` precedes the normalisation by ``mean`` and ``std`` of each channel, in training images alone.
    """
    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    test = Kept(load(name, root, train=False, transform=normalise))
    if augmentation:
        return load(name, root, train=True), test, transforms.Compose([*augmentation, normalise])
    return Kept(load(name, root, train=True, transform=normalise)), test, None


def load(name: str, root: str | Path, *, train: bool, transform: Transform | None = None) -> Dataset:
    """The training or the test half of a dataset in ``NUM_CLASSES``, downloaded to ``root`` when it is not there.

    ``transform`` is of each PIL image. A UserError, if data are missing and cannot be fetched, or names a damaged file.
    """
    if name == "digits":
        return Digits(train=train, transform=transform)
    kind = TORCHVISION[name]
    root = _find_root(kind, Path(root).expanduser())
    folder = root / _inner(kind)
    try:
        found = kind(root, train=train, transform=transform)
    except Exception as error:  # torchvision reports a bad file, or none, by almost any type
        if damage := _find_damage(kind, folder):
            raise UserError(f"{damage}: delete it and run again with a network, or put a good copy there") from error
        if _complete(kind, root):
            raise UserError(f"the files of {name} in {folder} cannot be read ({_first_line(error)}): delete them and "
                            f"run again with a network, or put good copies there") from error
    else:
        labels, shape = np.asarray(found.targets), tuple(found.data.shape)
        right = shape[1:] in ((28, 28), (32, 32, 3)) and len(labels) == len(found.data)
        if not right or not 0 <= labels.min() <= labels.max() < NUM_CLASSES[name]:
            raise UserError(f"the files of {name} in {folder} do not belong together: {len(found.data)} images and "
                            f"{len(labels)} labels, from {labels.min()} to {labels.max()}, to "
                            f"{'train' if train else 'test'} with, images of {shape[1:]}: put good copies there")
        return found
    say(f"{name} is not in {folder}: fetching what is missing")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT)  # torchvision sets none
    try:
        return kind(root, train=train, download=True, transform=transform)
    except Exception as error:
        raise UserError(f"{name} is not in {folder} and could not be downloaded ({_first_line(error)}): fetch it "
                        f"elsewhere and put its files there, or name the folder that holds them with --path") from error
    finally:
        socket.setdefaulttimeout(before)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def class_folders(root: str | Path, classes: Collection[str], *,
                  transform: Transform | None = None) -> tuple[datasets.ImageFolder, datasets.ImageFolder]:
    """Images of one's own: a training and a test set from ``<root>/train/<class>/`` and ``<root>/test/<class>/``.

    Inputs are PIL images in colour, labels number the classes in alphabetical order; ``transform`` is for test images.
    A UserError, if folders are missing, without images or of other classes; later, if a file is damaged or no image.
    """
    parts = []
    for part, own in (("train", None), ("test", transform)):
        folder = Path(root).expanduser() / part
        found = {path.name for path in subfolders(folder)}
        if found != set(classes):
            raise UserError(f"{folder} should hold the folders {', '.join(sorted(classes))}, one for each class, and "
                            f"holds {', '.join(sorted(found)) or 'none'}: arrange the images so, or name their folder "
                            f"with --path")
        try:
            parts.append(datasets.ImageFolder(str(folder), transform=own, loader=open_image))
        except FileNotFoundError as error:
            raise UserError(f"a class in {folder} has no images ({_first_line(error)}): put some there") from error
        taken = {file for file, _ in parts[-1].samples}
        others = sorted(str(file) for name in classes for file in (folder / name).rglob("[!.]*")
                        if file.is_file() and str(file) not in taken)
        if others:
            say(f"note: {len(others)} files in {folder} are no images by their names and are left out, as {others[0]}")
    return tuple(parts)


def open_image(path: str | Path) -> Image.Image:
    """The image in a file, in 8-bit colour; a UserError if it is none, or has more bits, which would be cut off."""
    try:
        with Image.open(path) as image:
            decoders = " ".join(str(tile[3]) for tile in image.tile)  # such as RGB;16B; a PPM's says its greatest value
            greatest = re.findall(r"\d+", decoders) if image.format == "PPM" else ()
            deep = image.mode[0] in "IF" or ";16" in decoders or any(int(value) > 255 for value in greatest)
            colour = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, for bad files
        raise UserError(f"{path} is damaged or no image ({_first_line(error)}): replace or delete it") from error
    if deep:
        raise UserError(f"{path} has more than 8 bits a channel: convert it to 8 bits")
    return colour


class Digits(Dataset):
    """Scikit-learn's 1,797 handwritten digits, 8x8 pixels enlarged to 28x28; a fixed stratified 80/20 split."""

    classes = [str(digit) for digit in range(10)]

    def __init__(self, *, train: bool, transform: Transform | None = None) -> None:
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


# CIFAR's files are pickles, which can do anything when they are read: torchvision reads those of the published md5 and
# no others, and nothing here reads any.


def _inner(kind: type) -> Path:
    """Where torchvision keeps the files of a dataset, from the folder that it is given."""
    return Path(kind.base_folder) if hasattr(kind, "base_folder") else Path(kind.__name__, "raw")


def _files(kind: type) -> dict[str, str | None]:
    """Names of the files of a dataset, and the md5 of each where it is known."""
    if hasattr(kind, "base_folder"):
        return dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
    return {name.removesuffix(".gz"): None for name, _ in kind.resources}


def _complete(kind: type, root: Path) -> bool:
    """Whether torchvision finds all files of a dataset."""
    return all((root / _inner(kind) / name).is_file() for name in _files(kind))


def _find_root(kind: type, root: Path) -> Path:
    """The folder to give to torchvision: ``root``, or one above or below it that holds the files; a UserError where
    there are files, but not in a folder or under names that torchvision takes."""
    if _complete(kind, root):
        return root
    inner, whole = _inner(kind), root.absolute()
    others = {plain(other.__name__) for other in TORCHVISION.values()} - {plain(kind.__name__)}
    if others & {plain(part) for part in whole.parts[-len(inner.parts):]}:
        return root  # the other one's folder: files of MNIST and Fashion-MNIST have the same names
    above = [whole.parents[depth] for depth in range(len(inner.parts))
             if whole.parts[-depth - 1:] == inner.parts[:depth + 1]]
    own = {plain(name) for name in (kind.__name__, *inner.parts, getattr(kind, "filename", "").split(".")[0])}
    below = [root]
    for folder in below:  # which grows
        below += [path for path in subfolders(folder) if plain(path.name) in own]
    for folder in (*above, *below):
        if _complete(kind, folder):
            return folder
    for folder in below:
        found = {name: _under_another_name(folder, name) for name in _files(kind)}
        for name, path in found.items():
            if (folder / name).is_dir():
                raise UserError(f"{folder / name} is a folder, but should be a file: "
                                + (f"put {path} in its place" if path else "delete it"))
        for name, path in found.items() if all(found.values()) else ():
            place = root / inner / (path.name if path.suffix == ".gz" else name)
            if path != place:
                raise UserError(f"a file of {kind.__name__} is {path}, but should be {place}: move it there, and the "
                                f"others likewise")
    return root


def _under_another_name(folder: Path, name: str) -> Path | None:
    """A file of a dataset as people and programs that unpack archives name it: with a dot, in a folder, or packed."""
    names = (name, name.replace("-idx", ".idx"))
    paths = (*names, *(f"{outer}/{own}" for outer in names for own in names), *(f"{own}.gz" for own in names))
    return next((folder / path for path in paths if (folder / path).is_file()), None)


def _find_damage(kind: type, folder: Path) -> str | None:
    """The first file of a dataset that is there but cannot be right, in words, or None."""
    for name, md5 in _files(kind).items():
        path = folder / name
        if not path.is_file():
            continue
        contents = path.read_bytes()
        if md5 and hashlib.md5(contents, usedforsecurity=False).hexdigest() != md5:
            return f"{path} is truncated or damaged, or not the published file (its md5 differs)"
        if kind.__name__.startswith("CIFAR") and not contents.endswith(b"."):  # the mark at the end of every pickle
            return f"{path} is truncated or damaged"
        if name.endswith("-ubyte"):
            header = 4 + 4 * contents[3] if len(contents) > 3 else 4
            items = np.prod(np.frombuffer(contents[4:header], ">i4")) if len(contents) >= header else 0
            expected = header + int(items)
            if len(contents) != expected:
                return f"{path} is truncated or damaged ({len(contents)} bytes where its header announces {expected})"
    return None
