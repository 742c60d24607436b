"""Made-up recordings in the manner of CIFAR10-DVS, for tests and trial runs: images seen by a simulated event camera.

    python -m tests.recordings OUT --train 20 --test 5    then train with --path OUT

As in the original, an image moves along a closed path, several times over. Each pixel of the camera remembers a log
intensity and emits an event each time the present one has moved a threshold away from it (Lichtsteiner et al., IEEE
Journal of Solid-State Circuits, 2008).
"""
import argparse
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits

from data.aedat import EVENT, MAGIC, SENSOR, Events
from data.dvs_files import CLASSES, FOLDER

SUBPIXELS = 2  # steps of the path to a pixel
REACH = 10  # pixels from the centre to a corner of the path
FIRST_TEST = 900  # number of the first recording of a class that tests
LOOPS, LOOP_TIME = 6, 200_000  # microseconds
THRESHOLD = 0.4  # of log intensity


def write_aedat(path: str | Path, events: Events) -> None:
    """Write events as jAER does.

    Raises:
        ValueError: a value is out of the range that :class:`Events` gives.
    """
    for field, values, limit in zip(Events._fields, events, (SENSOR, SENSOR, 2, 2**32)):
        if np.size(values) and not 0 <= np.min(values) <= np.max(values) < limit:
            raise ValueError(f"{field} must lie in [0, {limit}) to be written to {path}, "
                             f"not in [{np.min(values)}, {np.max(values)}]")
    x, y, polarity, timestamp = (np.asarray(values, np.int64) for values in events)
    stored = np.empty(len(x), EVENT)
    stored["address"] = y << 8 | 127 - x << 1 | 1 - polarity
    stored["timestamp"] = timestamp
    header = (MAGIC, b"# This is a raw AE data file - do not edit",
              b"# Data format is int32 address, int32 timestamp (8 bytes total), repeated for each event",
              b"# Timestamps tick is 1 us")
    Path(path).write_bytes(b"".join(line + b"\r\n" for line in header) + stored.tobytes())


def record(image: np.ndarray, *, events: int, seed: int) -> Events:
    """What the camera sees of a moving image.

    Args:
        image: (height, width), of any range; it is enlarged to fill the sensor.
        events: this many are kept, drawn at random from all; seed: of the draw.

    Raises:
        ValueError: the image gives fewer events.
    """
    views = _moving_views(image)
    step_time = LOOP_TIME * LOOPS / len(views)
    reference, seen = views[0].copy(), []
    for step, view in enumerate(views):
        change = view - reference
        crossings = np.trunc(change / THRESHOLD).astype(int)
        y, x = np.nonzero(crossings)
        count = np.abs(crossings[y, x])
        order = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + 1  # 1, 2, .. for each pixel
        y, x = np.repeat(y, count), np.repeat(x, count)
        # Intensity changes linearly within a step, and each crossing has its moment.
        moment = step + order * THRESHOLD / np.abs(change[y, x])
        seen.append((x, y, (crossings[y, x] > 0).astype(int), (moment * step_time).astype(int)))
        reference += crossings * THRESHOLD
    x, y, polarity, timestamp = (np.concatenate(parts) for parts in zip(*seen))
    if len(x) < events:
        raise ValueError(f"the image gives {len(x)} events, fewer than {events}: ask for fewer")
    kept = np.sort(np.random.default_rng(seed).choice(len(x), events, replace=False))
    kept = kept[np.argsort(timestamp[kept], kind="stable")]
    return Events(x[kept], y[kept], polarity[kept], timestamp[kept])


def make_dataset(root: str | Path, *, train: int, test: int, events: int = 200_000,
                 pictures: tuple[np.ndarray, np.ndarray] | None = None) -> Path:
    """Write recordings of all classes as an extracted CIFAR10-DVS: numbers 0, 1, .. to train, 900, 901, .. to test.

    Args:
        root: the folder for ``--path``; train, test: recordings of each class; events: of each recording.
        pictures: images (n, height, width) and labels 0-9 (n,) to record, by default scikit-learn's digits.

    Returns:
        the folder ``cifar10-dvs`` in ``root``.

    Raises:
        ValueError: there are fewer pictures of a class than recordings asked for.
    """
    images, labels = load_digits(return_X_y=True) if pictures is None else pictures
    images = images.reshape(-1, 8, 8) if pictures is None else images
    folder = Path(root) / FOLDER
    for label, name in enumerate(CLASSES):
        own = images[labels == label]
        if len(own) < train + test:
            raise ValueError(f"{len(own)} pictures of class {label} make no {train + test} recordings: ask for fewer")
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, image in zip([*range(train), *range(FIRST_TEST, FIRST_TEST + test)], own):
            write_aedat(folder / name / f"cifar10_{name}_{number}.aedat", record(image, events=events, seed=number))
    return folder


def _moving_views(image: np.ndarray) -> np.ndarray:
    """Log intensities (steps, 128, 128) that the sensor sees while the image moves around a diamond."""
    reach = REACH * SUBPIXELS
    side = SENSOR * SUBPIXELS + 2 * reach
    contrast = (image - image.min()) / max(np.ptp(image), 1e-6)
    canvas = np.log(0.1 + cv2.resize(contrast.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR))
    corners = np.array([(0, 1), (1, 0), (2, 1), (1, 2), (0, 1)]) * reach
    path = np.concatenate([np.linspace(start, end, reach, endpoint=False) for start, end in zip(corners, corners[1:])])
    views = [canvas[top:top + SENSOR * SUBPIXELS:SUBPIXELS, left:left + SENSOR * SUBPIXELS:SUBPIXELS]
             for top, left in path.astype(int)]
    return np.stack(views * LOOPS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder to give to --path")
    parser.add_argument("--train", type=int, default=20, help="training recordings of a class (default: %(default)s)")
    parser.add_argument("--test", type=int, default=5, help="test recordings of a class (default: %(default)s)")
    parser.add_argument("--events", type=int, default=200_000, help="events of a recording (default: %(default)s)")
    args = parser.parse_args()
    print(make_dataset(args.out, train=args.train, test=args.test, events=args.events))
