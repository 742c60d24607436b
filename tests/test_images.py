"""Image datasets as they lie on people's disks: found or named, not fetched again in silence or unpickled unchecked."""
import argparse
import gzip
import hashlib
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, FashionMNIST

from data import images
from tests import cifar
from utils.errors import UserError
from utils.loading import make_loaders

MNIST_FILES = {f"{part}-{kind}-ubyte": (count, kind) for part, count in (("train", 3), ("t10k", 2))
               for kind in ("images-idx3", "labels-idx1")}


@pytest.fixture(autouse=True)
def no_download(monkeypatch) -> None:
    """A download fails the test, unless it allows one."""
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("something was downloaded")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def make_mnist(folder: Path) -> Path:
    """Write four small files in the format of MNIST."""
    folder.mkdir(parents=True)
    for name, (count, kind) in MNIST_FILES.items():
        sizes = (count, 28, 28) if kind == "images-idx3" else (count,)
        header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
        (folder / name).write_bytes(header + bytes(count * (784 if len(sizes) == 3 else 1)))
    return folder


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> Path:
    """A folder with a small CIFAR-10, whose md5 are made the published ones."""
    folder = cifar.make_batches(tmp_path / "data")
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in cifar.FILES[:-1]])
    monkeypatch.setattr(CIFAR10, "test_list", [[cifar.FILES[-1], md5[cifar.FILES[-1]]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    return folder.parent


# Safety


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("train", [True, False])
def test_unknown_files_are_never_unpickled(cifar10, tmp_path, name, train):
    """A file of another md5 is named and not read: neither by torchvision nor to find out what is wrong with it."""
    trap = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()
    trap.unlink()
    path = cifar10 / CIFAR10.base_folder / name
    path.write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(UserError, match=f"{name} is truncated or damaged, or not the published file .*delete it"):
        images.load("cifar10", cifar10, train=train)
    assert not trap.exists()


@pytest.mark.parametrize("spoil", [lambda whole: whole[:-100], lambda whole: b"", lambda whole: whole[:99] + b"!"])
def test_damaged_batches(cifar10, spoil):
    """A truncated, empty or altered batch is named, and left as it is."""
    path = cifar10 / CIFAR10.base_folder / "data_batch_2"
    spoilt = spoil(path.read_bytes())
    path.write_bytes(spoilt)
    with pytest.raises(UserError, match="data_batch_2 is truncated or damaged"):
        images.load("cifar10", cifar10, train=True)
    assert path.read_bytes() == spoilt


def test_files_that_are_whole_but_unreadable(cifar10, monkeypatch):
    """Where md5 are not compared, as with a dataset of one's own, files that hold something else are still refused."""
    cifar.accept_any_md5(monkeypatch.setattr)
    (cifar10 / CIFAR10.base_folder / "data_batch_2").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="the files of cifar10 in .* cannot be read"):
        images.load("cifar10", cifar10, train=True)


# Layouts


@pytest.mark.parametrize("place", ["cifar-10-batches-py", "CIFAR10/cifar-10-batches-py",
                                   "cifar-10-python/cifar-10-batches-py", "cifar-10-batches-py/cifar-10-batches-py"])
@pytest.mark.parametrize("itself", [False, True])
def test_cifar_layouts(cifar10, tmp_path, place, itself):
    """CIFAR's folder is found where an archive was unpacked one level too deep, and when the flag names it itself."""
    target = tmp_path / "here" / place
    target.parent.mkdir(parents=True)
    (cifar10 / CIFAR10.base_folder).rename(target)
    assert len(images.load("cifar10", target if itself else tmp_path / "here", train=True)) == 40


@pytest.mark.parametrize("place, path", [("MNIST/raw", ""), ("MNIST/raw", "MNIST"), ("MNIST/raw", "MNIST/raw"),
                                         ("mnist/MNIST/raw", ""), ("MNIST/MNIST/raw", "")])
def test_mnist_layouts(tmp_path, place, path):
    """MNIST's folder is found likewise."""
    make_mnist(tmp_path / place)
    assert [len(images.load("mnist", tmp_path / path, train=train)) for train in (True, False)] == [3, 2]


def fold(folder: Path) -> None:
    """One file in a folder of its name, as some archives unpack."""
    inner = folder / "t10k-images-idx3-ubyte"
    inner.rename(folder / "file")
    inner.mkdir()
    (folder / "file").rename(inner / "t10k-images.idx3-ubyte")


def dot(folder: Path) -> None:
    """Names with a dot, as other programs unpack them."""
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("-idx", ".idx"))


def pack(folder: Path) -> None:
    """Archives that were not unpacked."""
    for path in list(folder.iterdir()):
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


@pytest.mark.parametrize("rearrange, place, words", [
    (fold, "MNIST/raw", "raw/t10k-images-idx3-ubyte is a folder, but should be a file: put .*ubyte/t10k-images.idx3-u"),
    (dot, "MNIST/raw", "MNIST is .*raw/train-images.idx3-ubyte, but should be .*/MNIST/raw/train-images-idx3-ubyte: m"),
    (dot, "", "MNIST is .*/train-images.idx3-ubyte, but should be .*/MNIST/raw/train-images-idx3-ubyte: move it"),
    (lambda folder: None, "", "MNIST is .*, but should be .*/MNIST/raw/train-images-idx3-ubyte: move it there"),
    (pack, "mnist", "MNIST is .*/mnist/train-images-idx3-ubyte.gz, but should be .*/MNIST/raw/train-.*ubyte.gz: move"),
    (lambda folder: None, "MNIST", "MNIST is .*/MNIST/train-.*, but should be .*/MNIST/raw/train-.*-ubyte: move it")])
def test_mnist_under_other_names(tmp_path, rearrange: Callable[[Path], None], place, words):
    """Files in a place or under a name that torchvision does not take are named, with what is expected."""
    rearrange(make_mnist(tmp_path / "here" / place))
    with pytest.raises(UserError, match=words):
        images.load("mnist", tmp_path / "here", train=True)


def test_empty_folder_in_place_of_a_file(tmp_path):
    """A folder that holds nothing is in the way."""
    folder = make_mnist(tmp_path / "MNIST" / "raw")
    (folder / "t10k-images-idx3-ubyte").unlink()
    (folder / "t10k-images-idx3-ubyte").mkdir()
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte is a folder, but should be a file: delete it"):
        images.load("mnist", tmp_path, train=True)


def test_other_datasets_files(tmp_path, monkeypatch, capsys):
    """Files of Fashion-MNIST are not taken for MNIST's, which have the same names; a download is announced."""
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    make_mnist(tmp_path / "FashionMNIST" / "raw")
    for path in (tmp_path, tmp_path / "FashionMNIST", tmp_path / "FashionMNIST" / "raw"):
        with pytest.raises(UserError, match="mnist is not in .*MNIST/raw and could not be downloaded"):
            images.load("mnist", path, train=True)
        assert isinstance(images.load("fashionmnist", path, train=True), FashionMNIST)
    assert capsys.readouterr().out.count("fetching what is missing") == 3


@pytest.mark.parametrize("source, target", [
    ("train-labels-idx1", "t10k-labels-idx1"), ("t10k-labels-idx1", "train-labels-idx1"),
    ("t10k-images-idx3", "train-images-idx3")])
def test_files_that_do_not_belong_together(tmp_path, source, target):
    """A copy under another's name would be trained on with labels of other images."""
    folder = make_mnist(tmp_path / "MNIST" / "raw")
    shutil.copyfile(folder / f"{source}-ubyte", folder / f"{target}-ubyte")
    with pytest.raises(UserError, match=r"do not belong together: \d+ images and \d+ labels, from 0 to 0, to t"):
        images.load("mnist", tmp_path, train=target.startswith("train"))


def test_images_of_another_size(tmp_path):
    """32x32 pixels are no MNIST, whatever the header says; the header itself may be torn at any place."""
    folder = make_mnist(tmp_path / "MNIST" / "raw")
    path = folder / "train-images-idx3-ubyte"
    number = len((folder / "train-labels-idx1-ubyte").read_bytes()) - 8
    path.write_bytes(struct.pack(">4i", 0x803, number, 32, 32) + bytes(number * 1024))
    with pytest.raises(UserError, match=r"do not belong together: .* images of \(32, 32\)"):
        images.load("mnist", tmp_path, train=True)
    for size in range(1, 17):
        path.write_bytes(struct.pack(">4i", 0x803, number, 28, 28)[:size])
        with pytest.raises(UserError, match="train-images-idx3-ubyte is truncated or damaged"):
            images.load("mnist", tmp_path, train=True)


def test_labels_of_no_class(tmp_path):
    folder = make_mnist(tmp_path / "MNIST" / "raw")
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\xc8")
    with pytest.raises(UserError, match="from 0 to 200, to train with"):
        images.load("mnist", tmp_path, train=True)


def test_folders_beside_do_not_count(cifar10, tmp_path, monkeypatch):
    """Data beside the folder that the flag names, which is not theirs, are not taken for it."""
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no route to host")))
    make_mnist(cifar10 / "MNIST" / "raw")
    for name in ("mnist", "cifar10"):
        with pytest.raises(UserError, match="could not be downloaded"):
            images.load(name, cifar10 / "other", train=True)


def test_packed_files_in_place_are_unpacked(tmp_path, monkeypatch):
    """Archives of the published md5 in the right folder need no download."""
    folder = make_mnist(tmp_path / "MNIST" / "raw")
    pack(folder)
    resources = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())]
    monkeypatch.setattr(images.TORCHVISION["mnist"], "resources", resources)
    assert len(images.load("mnist", tmp_path, train=True)) == 3


def test_home(tmp_path, monkeypatch):
    """``~`` is the home folder."""
    make_mnist(tmp_path / "MNIST" / "raw")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(images.load("mnist", "~", train=True)) == 3
    shutil.rmtree(tmp_path / "MNIST")
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").mkdir(parents=True)
    with pytest.raises(UserError, match=f"^{tmp_path}/MNIST"):
        images.load("mnist", "~", train=True)


# Images of one's own


@pytest.fixture
def own(tmp_path) -> Path:
    """Six photographs of two classes, of different sizes and kinds."""
    from sklearn.datasets import load_sample_images

    flower, china = (Image.fromarray(image) for image in reversed(load_sample_images().images))
    for name, image in (("china", china), ("flower", flower)):
        for part, sizes in (("train", (64, 50)), ("test", (40,))):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for size in sizes:
                image.resize((size, 48)).save(folder / f"{size}.jpg")
        image.resize((30, 30)).convert("L").save(tmp_path / "train" / name / "grey.png")
    return tmp_path


CLASSES = ("china", "flower")
PREPARE = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])


def loaders(own: Path, *, grey: bool = False, workers: int = 0) -> list[DataLoader]:
    """Loaders as a script gets them from its data."""
    prepare = transforms.Compose([transforms.Grayscale(), PREPARE]) if grey else PREPARE
    train, test = images.class_folders(own, CLASSES, transform=prepare)
    args = argparse.Namespace(train_batch=6, test_batch=2, workers=workers, test_limit=None)
    return list(make_loaders(train, test, args, transform=prepare, seed=1))


@pytest.mark.parametrize("grey", [False, True])
def test_own_images(own, grey):
    """Photographs in class folders become batches of one size, in colour or grey, with their labels."""
    for loader, count in zip(loaders(own, grey=grey, workers=2), (6, 2)):
        (inputs, targets, _), = loader
        assert inputs.shape == (count, 1 if grey else 3, 32, 32) and inputs.std() > 0.1
        assert targets.bincount().tolist() == [count // 2] * 2
        brightness = inputs[:, -1].mean((1, 2))
        assert brightness[targets == 0].min() > brightness[targets == 1].max()  # a sky, and a dark garden


@pytest.mark.parametrize("spoil", [lambda whole: whole[:len(whole) // 2], lambda whole: b"", lambda whole: b"<html>",
                                   lambda whole: whole[:5] + bytes(500) + whole[505:]])
@pytest.mark.parametrize("name", ["64.jpg", "grey.png", "plain.ppm"])
def test_damaged_own_image(own, spoil, name):
    """A damaged image is named."""
    path = own / "train" / "flower" / name
    if name == "plain.ppm":
        Image.open(path.with_name("64.jpg")).save(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=f"train/flower/{name} is damaged or no image"):
        list(loaders(own)[0])


def test_damaged_own_image_in_a_worker(own):
    """The worker of a loader names it too."""
    (own / "train" / "flower" / "64.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="train/flower/64.jpg is damaged or no image"):
        list(loaders(own, workers=1)[0])


def test_own_image_of_many_bits(own):
    """16 bits a channel, which Pillow would make white, are refused."""
    path = own / "test" / "china" / "40.jpg"
    path.unlink()
    Image.fromarray(np.full((40, 40), 30000, np.uint16)).save(path.with_suffix(".png"))
    with pytest.raises(UserError, match="china/40.png has more than 8 bits"):
        list(loaders(own)[1])


@pytest.mark.parametrize("suffix, channels", [(".png", 1), (".png", 3), (".png", 4), (".tif", 1), (".tif", 3),
                                              (".ppm", 3), (".pgm", 1)])
def test_many_bits_of_a_colour_image(tmp_path, suffix, channels):
    """Pillow would cut them off as it reads them; images of 8 bits are taken as they are."""
    pixels = np.random.default_rng(0).integers(256, 65536, (6, 5, channels), dtype=np.uint16)
    path = str(tmp_path / f"image{suffix}")
    assert cv2.imwrite(path, pixels)
    with pytest.raises(UserError, match="has more than 8 bits"):
        images.open_image(path)
    assert cv2.imwrite(path, (pixels >> 8).astype(np.uint8))
    assert images.open_image(path).mode == "RGB"


def test_files_that_are_left_out_are_named(own, capsys):
    """Such as GIFs, which torchvision takes for no images."""
    loaders(own)
    assert "left out" not in capsys.readouterr().out
    for name in ("a.gif", "b.gif", ".hidden"):
        (own / "train" / "flower" / name).touch()
    loaders(own)
    assert "2 files in" in (said := capsys.readouterr().out) and "flower/a.gif" in said


@pytest.mark.parametrize("part, name, words", [
    ("test", "china", "test should hold the folders china, flower, .* holds flower"),
    ("train", "", "train should hold the folders china, flower, .* holds none")])
def test_classes_that_differ(own, part, name, words):
    """A class that one part lacks, which would number the others anew, is refused; so is one without images."""
    shutil.rmtree(own / part / name)
    with pytest.raises(UserError, match=words):
        loaders(own)
    for empty in CLASSES:
        (own / part / empty).mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match=f"a class in .*{part} has no images"):
        loaders(own)


# Augmentation


def test_augmentation_comes_before_normalisation(monkeypatch):
    """Of training images alone, which are then no longer kept: a crop pads with black, not with the mean."""
    half = {True: Image.new("L", (2, 2), 255), False: Image.new("L", (2, 2), 51)}

    def load(name, root, *, train, transform=None):
        return [(transform(half[train]) if transform else half[train], 3)]

    monkeypatch.setattr(images, "load", load)
    train, test, transform = images.normalised("own", "", mean=(0.5,), std=(0.25,), augmentation=[transforms.Pad(1)])
    found = transform(train[0][0])
    assert found.shape == (1, 4, 4) and found.unique().tolist() == [-2.0, 2.0]
    assert test[0][0].unique().tolist() == pytest.approx([(0.2 - 0.5) / 0.25])
    train, _, transform = images.normalised("own", "", mean=(0.5,), std=(0.25,))
    assert transform is None and train[0][0].unique().tolist() == [2.0]
