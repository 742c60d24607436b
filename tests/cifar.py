"""A small CIFAR-10 in the true format, and scripts run on it.

    python -m tests.cifar SCRIPT [FLAGS]     runs a script on batches other than the published ones

torchvision compares every file with the md5 of the published one, which made-up batches cannot have.
"""
import pickle
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10

FILES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def make_batches(root: Path, *, images: int = 8) -> Path:
    """Write the six files of CIFAR-10 with ``images`` coloured digits each; return their folder."""
    from sklearn.datasets import load_digits  # slow to import, which the scripts run from here need not

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    digits, labels = load_digits(return_X_y=True)
    for number, name in enumerate(FILES):
        own = slice(number * images, (number + 1) * images)
        grey = digits[own].reshape(-1, 1, 8, 8).repeat(4, 2).repeat(4, 3) * (255 / 16)
        colours = np.random.default_rng(number).uniform(0.3, 1, (images, 3, 1, 1))
        batch = {"batch_label": name, "labels": labels[own].tolist(),
                 "data": (grey * colours).astype(np.uint8).reshape(images, -1),
                 "filenames": [f"{index}.png" for index in range(images)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {"label_names": list("0123456789"), "num_cases_per_batch": images, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))
    return folder


def accept_any_md5(set_attribute: Callable[[type, str, object], None] = setattr) -> None:
    """Make torchvision take the files of CIFAR-10 as they are; a test's ``monkeypatch.setattr`` takes that back."""
    set_attribute(CIFAR10, "train_list", [[name, None] for name in FILES[:-1]])
    set_attribute(CIFAR10, "test_list", [[FILES[-1], None]])
    set_attribute(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})


if __name__ == "__main__":
    accept_any_md5()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
