"""Frames, against counts and resized images worked out by other means."""
import numpy as np
import pytest
from PIL import Image

from data.aedat import Events
from data.frames import TRANSFORMS, clean_transform, events_to_frames, reference_transform

SIDE, SIZE = 128, 48


@pytest.fixture
def counts() -> np.ndarray:
    """Random counts of four frames, most of them 0, as events are."""
    return np.random.default_rng(0).poisson(0.3, (4, 2, SIDE, SIDE))


def triangle_weights(size: int) -> np.ndarray:
    """Weights (size, 128) of antialiased bilinear reduction: triangles as wide as two output pixels."""
    scale = SIDE / size
    centres = (np.arange(size) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(SIDE) + 0.5 - centres[:, None]) / scale)
    return weights / weights.sum(axis=1, keepdims=True)


def area_weights(size: int) -> np.ndarray:
    """Weights (size, 128): the share of each output pixel that each input pixel covers."""
    edges = np.arange(size + 1) * SIDE / size
    pixels = np.arange(SIDE)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.maximum(0, overlap) * size / SIDE


def test_split_by_number():
    """Frames hold n // frames events each and the last the remainder too, whatever the timestamps."""
    n = 11
    events = Events(np.arange(n), np.full(n, 5), np.arange(n) % 2, np.array([0] * 10 + [999]))
    frames = events_to_frames(events, 3)
    assert frames.shape == (3, 2, SIDE, SIDE)
    assert frames.sum(axis=(1, 2, 3)).tolist() == [3, 3, 5]
    for i in range(n):
        assert frames[min(i // 3, 2), i % 2, 5, i] == 1


def test_counts_add_up():
    """Events of one pixel in one frame are counted, not merely noted."""
    events = Events(*np.array([[3] * 6, [4] * 6, [0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 4, 5]]))
    frames = events_to_frames(events, 1)
    assert frames[0, :, 4, 3].tolist() == [4, 2] and frames.sum() == 6


@pytest.mark.parametrize("frames", [0, -1, 3])
def test_impossible_splits(frames):
    """More frames than events, or none, are refused in words that say what is possible."""
    with pytest.raises(ValueError, match="2 events cannot be split"):
        events_to_frames(Events(*np.zeros((4, 2), int)), frames)


def test_reference_is_what_pillow_does(counts):
    """The reference transform equals, byte by byte, resizing the two-channel image of polarities with Pillow."""
    for frame, resized in zip(counts, reference_transform(counts)):
        grey, alpha = (Image.fromarray((255 * plane % 256).astype(np.uint8)) for plane in frame)
        expected = Image.merge("LA", (grey, alpha)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        assert np.array_equal(resized, np.stack([np.asarray(band) for band in expected.split()]))


def test_reference_is_premultiplied(counts):
    """The reference transform is the alpha-weighted bilinear mean, computed here in plain NumPy, up to rounding."""
    weights = triangle_weights(SIZE)
    grey, alpha = np.moveaxis(255.0 * counts % 256, 1, 0)
    alpha_mean = weights @ alpha @ weights.T
    grey_mean = weights @ (grey * alpha) @ weights.T / alpha_mean.clip(1e-9)
    resized = reference_transform(counts).astype(float)
    assert np.abs(resized[:, 1] - alpha_mean).max() < 2
    visible = alpha_mean > 64  # 8-bit premultiplied values are too coarse to divide where alpha is small
    assert visible.mean() > 0.2 and np.abs(resized[:, 0] - grey_mean)[visible].max() < 8


def test_polarity_0_is_weighted_by_polarity_1():
    """Events of polarity 0 are lost without polarity 1 about, and count for more the more of it is there."""
    counts = np.zeros((3, 2, SIDE, SIDE), int)
    counts[:, 0, :, ::2] = 1
    counts[1, 1] = 1
    counts[2, 1, :, ::2] = 1
    alone, everywhere, together = reference_transform(counts)[:, 0, 24, 24]
    assert alone == 0
    assert abs(int(everywhere) - 127) < 12
    assert together > 250


def test_reference_counts_are_modulo_256():
    """A pixel's value is 255 n mod 256: 1 event is 255, 2 are 254, 256 are none."""
    for n, value in ((0, 0), (1, 255), (2, 254), (255, 1), (256, 0), (257, 255)):
        assert (reference_transform(np.full((1, 2, SIDE, SIDE), n))[0, 1] == value).all()


def test_clean_is_the_area_average(counts):
    """The clean transform equals the share of each pixel's area that has events, and keeps polarities apart."""
    weights = area_weights(SIZE)
    expected = weights @ (counts > 0) @ weights.T
    assert np.allclose(clean_transform(counts), expected, atol=1e-3)
    only = counts * np.array([1, 0])[:, None, None]
    assert np.array_equal(clean_transform(only)[:, 0], clean_transform(counts)[:, 0])
    assert not clean_transform(only)[:, 1].any()


@pytest.mark.parametrize("name, dtype", [("reference", np.uint8), ("clean", np.float16)])
@pytest.mark.parametrize("size", [16, SIZE, SIDE])
def test_shapes_and_types(counts, name, dtype, size):
    """Transforms keep frames and polarities, and give the size and the type that are stored."""
    frames = TRANSFORMS[name](counts, size)
    assert frames.shape == (4, 2, size, size) and frames.dtype == dtype
