"""The four networks: parameter counts of the paper, shapes, initial weights."""
import pytest
import torch

from models import AlexNetF, CIFARNetF, ConvNetF, LeNet


def size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind, arguments, parameters", [
    (LeNet, {}, 606_740), (AlexNetF, {}, 3_706_762), (AlexNetF, {"num_classes": 100}, 5_181_412),
    (CIFARNetF, {}, 11_835_146), (CIFARNetF, {"num_classes": 100}, 14_784_356), (ConvNetF, {}, 9_586_186)])
def test_published_sizes(kind: type, arguments: dict, parameters: int) -> None:
    assert size(kind(**arguments)) == parameters


def test_published_layers() -> None:
    """Shapes of all neuron layers, pooling layers included."""
    assert LeNet().network.layer_shapes((1, 28, 28)) == [(15, 28, 28), (15, 14, 14), (40, 14, 14), (40, 7, 7), (300,)]
    assert AlexNetF().network.layer_shapes((3, 32, 32)) == [
        (96, 16, 16), (256, 16, 16), (384, 8, 8), (384, 8, 8), (256, 8, 8)]
    assert ConvNetF().network.layer_shapes((2, 48, 48)) == [(512, 24, 24)]
    assert AlexNetF().num_neurons == 155_648


@pytest.mark.parametrize("kind, arguments, shape", [
    (LeNet, {"widths": (3, 4, 5), "image_size": 17, "in_channels": 2}, (2, 17, 17)),
    (AlexNetF, {"widths": (3, 4, 5, 6, 7), "image_size": 9, "num_classes": 4}, (3, 9, 9)),
    (CIFARNetF, {"widths": (3, 4, 5, 6, 7), "image_size": 14, "in_channels": 1}, (1, 14, 14)),
    (ConvNetF, {"width": 4, "image_size": 11, "num_classes": 3}, (6, 2, 11, 11))])
def test_every_size_is_an_argument(kind: type, arguments: dict, shape: tuple[int, ...]) -> None:
    model = kind(**arguments, time_step=6, time_step_back=3)
    assert model(torch.rand(2, *shape)).shape == (2, arguments.get("num_classes", 10))


def test_initial_weights() -> None:
    """Unit norm per output channel, a tenth of it for feedback; biases 0; norms within the restriction."""
    network = AlexNetF().network
    for synapse in (network.input, *network.layers):
        torch.testing.assert_close(synapse.weight.flatten(1).norm(dim=1), torch.ones(len(synapse.weight)))
        assert not synapse.bias.any()
    feedback_rows = network.feedback.stored_weight.transpose(0, 1).flatten(1)
    torch.testing.assert_close(feedback_rows.norm(dim=1), torch.full((96,), 0.1))
    feedback = ConvNetF().network.feedback
    assert feedback.stored_weight.norm() > 10
    assert feedback.weight.norm().item() == pytest.approx(10, rel=1e-4)
    first = LeNet().network.layers[1].weight
    assert first.std().item() == pytest.approx((2 / (15 * 25)) ** 0.5, rel=0.05)
