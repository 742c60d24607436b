"""Synapses: shapes, transposes that are adjoint, and the norm restriction."""
import pytest
import torch

from modules.synapses import AvgPool2d, Conv2d, ConvTranspose2d, Linear, MaxNorm, Synapse

# A synapse and the shape of its input; sizes that no stride divides are among them.
CASES = {
    "conv": (lambda: Conv2d(3, 5, 3), (3, 7, 8)),
    "conv, stride 2, odd": (lambda: Conv2d(3, 5, 3, stride=2), (3, 7, 10)),
    "conv, even kernel, no padding": (lambda: Conv2d(3, 5, 4, stride=3, padding=0), (3, 9, 12)),
    "transposed conv": (lambda: ConvTranspose2d(3, 4, 3, stride=2), (3, 4, 5)),
    "transposed conv, stride 3": (lambda: ConvTranspose2d(3, 4, 5, stride=3), (3, 3, 2)),
    "linear": (lambda: Linear(12, 7), (12,)),
    "linear from an image": (lambda: Linear(3 * 4 * 5, 7), (3, 4, 5)),
    "pool": (lambda: AvgPool2d(2), (3, 6, 8)),
    "pool, remainder left out": (lambda: AvgPool2d(2), (3, 7, 9)),
    "pool, overlapping, padded": (lambda: AvgPool2d(3, stride=2, padding=1), (3, 7, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_transpose_is_adjoint(name: str) -> None:
    """<W s, r> = <s, W^T r>, both by the synapse's own formula and by the automatic one of the base class."""
    torch.manual_seed(0)
    make, shape = CASES[name]
    synapse = make().double()
    target = synapse.output_shape(shape)
    spikes, signals = torch.randn(2, *shape).double(), torch.randn(2, *target).double()
    current = synapse.current(spikes, synapse.weight, None, target)
    assert current.shape == signals.shape
    product = (current * signals).sum()
    for transpose in (synapse.transpose, Synapse.transpose.__get__(synapse)):
        back = transpose(signals, synapse.weight, shape)
        assert back.shape == spikes.shape
        torch.testing.assert_close((spikes * back).sum(), product)


@pytest.mark.parametrize("name", [name for name in CASES if "pool" not in name])
def test_parameter_gradients_are_those_of_the_current(name: str) -> None:
    """The synapse's own formulas against automatic differentiation; what is not wanted comes back as None."""
    torch.manual_seed(0)
    make, shape = CASES[name]
    synapse = make().double()
    rates, error = torch.rand(2, *shape).double(), torch.randn(2, *synapse.output_shape(shape)).double()
    arguments = rates, synapse.weight, synapse.bias, error
    expected = Synapse.parameter_gradients(synapse, *arguments, (True, True))
    assert expected[0].any() and expected[1].any()
    for wanted in ((True, True), (True, False), (False, True), (False, False)):
        for want, exact, found in zip(wanted, expected, synapse.parameter_gradients(*arguments, wanted)):
            if want:
                torch.testing.assert_close(found, exact)
            else:
                assert found is None


def test_synapses_are_abstract_or_final() -> None:
    """Whoever derives from a final synapse and changes its current would inherit what belongs to the old one."""
    for final in (Conv2d, ConvTranspose2d, Linear, AvgPool2d):
        with pytest.raises(TypeError, match=f"the synapse {final.__name__} is final, .*: derive from Synapse"):
            type("Own", (final,), {})


@pytest.mark.parametrize("height, width", [(7, 7), (8, 7), (7, 8), (8, 8)])
def test_feedback_reaches_odd_and_even_sizes(height: int, width: int) -> None:
    """A transposed convolution of stride 2 leads back to the image that a convolution of stride 2 came from."""
    down, up = Conv2d(2, 3, 3, stride=2), ConvTranspose2d(3, 2, 3, stride=2)
    small = down.output_shape((2, height, width))
    assert up.reaches(small, (2, height, width)) and not up.reaches(small, (2, height + 2, width))
    current = up.current(torch.ones(1, *small), up.weight, None, (2, height, width))
    assert current.shape == (1, 2, height, width)
    assert up.transpose(current, up.weight, small).shape == (1, *small)


def test_norm_restriction() -> None:
    """w min(1, c / ||w||), exactly; the factor is a constant in differentiation; smaller weights stay as they are."""
    synapse = Conv2d(2, 3, 3, max_norm=0.5).double()
    stored = synapse.stored_weight
    assert stored.norm() > 0.5
    torch.testing.assert_close(synapse.weight, stored * (0.5 / stored.norm()))
    gradient, = torch.autograd.grad(synapse.weight.sum(), stored)
    torch.testing.assert_close(gradient, torch.full_like(stored, 0.5 / stored.norm().item()))
    loose = Conv2d(2, 3, 3, max_norm=1e6)
    assert torch.equal(loose.weight, loose.stored_weight)


def test_biases_start_at_zero_and_drive_the_current() -> None:
    synapse = Linear(4, 3)
    assert not synapse.bias.any()
    with torch.no_grad():
        synapse.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(synapse(torch.zeros(2, 4)), torch.tensor([[1.0, 2.0, 3.0]] * 2))


@pytest.mark.parametrize("make, message", [
    (lambda: Conv2d(3, 4, 3).output_shape((2, 8, 8)), r"Conv2d expects an input of shape \(3, height, width\), got"),
    (lambda: Conv2d(3, 4, 5, padding=0).output_shape((3, 4, 9)), "too small"),
    (lambda: Linear(5, 2).output_shape((2, 3)), "expects 5 input units"),
    (lambda: AvgPool2d(2).output_shape((8,)), "expects an input of shape"),
    (lambda: Conv2d(1, 1, 3, dropout=1.0), "dropout must lie in"),
    (lambda: MaxNorm(0), "max_norm must be positive"),
])
def test_what_does_not_fit_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
