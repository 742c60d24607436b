"""From events to the frames a network sees: count the events of each pixel, then reduce to the size of the input.

A transform takes the counts of a recording, integers of shape (frames, 2, 128, 128) indexed by frame, polarity, row and
column, to frames of shape (frames, 2, size, size) for images of ``size`` pixels a side. ``TRANSFORMS`` lists them by
name; to add one, add it there.
"""
import cv2
import numpy as np
from PIL import Image

from data.aedat import SENSOR, Events
from utils.errors import UserError


def events_to_frames(events: Events, frames: int) -> np.ndarray:
    """Count ``n`` events by frame, polarity, row and column, int64 (frames, 2, 128, 128).

    Frames hold equally many events, not equally long spans of time: ``n // frames``, and the last the remainder too.
    A UserError where there are fewer events than frames, or ``frames`` is not positive.
    """
    n = len(events.timestamp)
    if not 0 < frames <= n:
        raise UserError(f"{n} events cannot be split into {frames} frames: ask for 1 to {n} frames")
    frame = np.minimum(np.arange(n) // (n // frames), frames - 1)
    shape = (frames, 2, SENSOR, SENSOR)
    cell = np.ravel_multi_index((frame, events.polarity, events.y, events.x), shape)
    return np.bincount(cell, minlength=np.prod(shape)).reshape(shape)


def reference_transform(counts: np.ndarray, size: int = 48) -> np.ndarray:
    """The transform behind the published numbers (Xiao et al., Neural Networks 161, 2023); almost binary frames.

    A count ``n`` becomes ``255 n mod 256``, and the two polarities one two-channel 8-bit image, which Pillow takes for
    grey and alpha. It resizes grey premultiplied with alpha, so that polarity 0 is weighted by polarity 1: where the
    latter is 0 all around, polarity 0 is lost. The result is uint8, in units of 1/255.
    """
    pixels = (255 * counts.astype(np.uint8)).transpose(0, 2, 3, 1)  # uint8 arithmetic is modulo 256
    images = [Image.fromarray(np.ascontiguousarray(image)) for image in pixels]
    assert all(image.mode == "LA" for image in images)
    resized = [np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    return np.ascontiguousarray(np.stack(resized).transpose(0, 3, 1, 2))


def clean_transform(counts: np.ndarray, size: int = 48) -> np.ndarray:
    """Share of the area with any event, float16 in [0, 1]: counts clipped to 1, then each polarity averaged over areas
    on its own."""
    planes = np.minimum(counts, 1).astype(np.float32).reshape(-1, *counts.shape[2:])
    resized = [cv2.resize(plane, (size, size), interpolation=cv2.INTER_AREA) for plane in planes]
    return np.stack(resized).reshape(*counts.shape[:2], size, size).astype(np.float16)


TRANSFORMS = {"reference": reference_transform, "clean": clean_transform}
