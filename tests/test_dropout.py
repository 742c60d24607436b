"""Dropout masks: the right share of units, and a function of each sample's key alone."""
import pytest
import torch

from modules.dropout import draw_keys, dropout_mask


def masks(keys: torch.Tensor, p: float = 0.25, stream: int = 0, shape: tuple[int, ...] = (6, 20, 20)) -> torch.Tensor:
    return dropout_mask(keys, shape, p=p, stream=stream, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
def test_values_and_share(p: float) -> None:
    """A mask is 0 with probability p and else 1/(1-p), in every sample and in every unit."""
    mask = masks(draw_keys(400, torch.device("cpu")), p)
    assert set(mask.unique().tolist()) == {0.0, 1 / (1 - p)}
    dropped = (mask == 0).double()
    deviation = (p * (1 - p)) ** 0.5
    assert abs(dropped.mean() - p) < 5 * deviation / dropped.numel() ** 0.5
    assert (dropped.mean((1, 2, 3)) - p).abs().max() < 5 * deviation / 2400**0.5
    assert (dropped.mean(0) - p).abs().max() < 5 * deviation / 400**0.5


def test_samples_units_and_streams_are_unrelated() -> None:
    """Masks of neighbouring keys, of neighbouring units and of two streams agree as often as chance has it."""
    keys = torch.arange(400)
    a, b = (masks(keys, 0.5, stream).flatten(1) > 0 for stream in (0, 1))
    for pairs in (a[1:] == a[:-1], a[:, 1:] == a[:, :-1], a == b, a[1:] == b[:-1], a[:, 20:] == a[:, :-20]):
        assert abs(pairs.double().mean() - 0.5) < 5 * 0.5 / pairs.numel() ** 0.5
    assert len({tuple(row) for row in a.tolist()}) == 400


def test_a_mask_depends_on_its_key_alone() -> None:
    """Neither batch size, nor place in the batch, nor the global generator matter; nor does the float type."""
    keys = draw_keys(6, torch.device("cpu"))
    whole = masks(keys)
    torch.manual_seed(1)
    assert torch.equal(torch.cat([masks(keys[4:]), masks(keys[:4])]), torch.cat([whole[4:], whole[:4]]))
    assert torch.equal(dropout_mask(keys, (6, 20, 20), p=0.25, stream=0, dtype=torch.float32) > 0, whole > 0)
    assert not torch.equal(masks(draw_keys(6, keys.device)), whole)
