"""Checkpoints of the published implementation: recognised, converted, refused when they hold another network."""
import pytest
import torch

from models import AlexNetF, ConvNetF, LeNet
from utils import published

KINDS = {"alexnetf": lambda: AlexNetF(widths=(3, 4, 5, 6, 7), image_size=8),
         "convnetf": lambda: ConvNetF(width=4, image_size=8), "lenet": lambda: LeNet(widths=(2, 3, 4), image_size=12)}
# Published name of each synapse, in the order of first appearance there.
NAMES = {"alexnetf": {"input": "network_x.conv", "layers.0": "network_s1.conv", "layers.1": "network_s2.conv",
                      "layers.2": "network_s3.conv", "layers.3": "network_s4.conv", "feedback": "network_s5.convT"},
         "convnetf": {"input": "network_x.conv", "feedback": "network_s1.conv"},
         "lenet": {"input": "network_x.conv", "layers.1": "network_s1.conv", "layers.3": "network_s2.fc"}}


def as_published(name: str, model: torch.nn.Module) -> dict:
    """A checkpoint of ``model`` as the published scripts write it: other names, repeated, and nameless momentum."""
    own = dict(model.named_parameters())
    theirs: dict[str, torch.Tensor] = {}
    for ours, published_name in reversed(NAMES[name].items()):  # the order is not ours
        prefix = f"network.{ours}"
        for key, value in own.items():
            if key == f"{prefix}.weight" or key == f"{prefix}.bias":
                theirs[f"{published_name}.{key.rsplit('.', 1)[1]}"] = value
            elif key.startswith(f"{prefix}.parametrizations"):
                theirs[f"{published_name}.weight_w"] = value
    theirs |= {"classifier.weight": own["classifier.weight"], "classifier.bias": own["classifier.bias"]}
    state = {f"module.{key}": value.detach().clone() for key, value in theirs.items()}
    for repeated in ("snn_func", "snn_spide_conv.snn_func"):
        state |= {f"module.{repeated}.{key}": value.detach().clone() for key, value in theirs.items()
                  if key.startswith("network")}
    momentum = {i: {"momentum_buffer": 2 * value.detach()} for i, value in enumerate(theirs.values())}
    group = {"lr": 0.1, "momentum": 0.9, "params": list(range(len(theirs)))}
    optimizer = {"state": momentum, "param_groups": [group]}
    return {"state_dict": state, "epoch": 3, "best_acc": 50.0, "optimizer": optimizer}


@pytest.mark.parametrize("name", KINDS)
def test_weights_and_momentum_find_their_places(name: str) -> None:
    torch.manual_seed(0)
    model, fresh = KINDS[name](), KINDS[name]()
    checkpoint = as_published(name, model)
    assert published.recognise(checkpoint)
    assert not published.recognise({"state_dict": model.state_dict()})
    converted = published.convert(checkpoint, fresh, "file")
    fresh.load_state_dict(converted["state_dict"])
    assert all(map(torch.equal, fresh.parameters(), model.parameters()))
    assert (converted["epoch"], converted["best_acc"]) == (3, 50.0)
    optimizer = torch.optim.SGD(fresh.parameters(), lr=1.0, momentum=0.9)
    optimizer.load_state_dict(converted["optimizer"])
    for parameter in fresh.parameters():
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], 2 * parameter)


def test_another_network_is_refused() -> None:
    checkpoint = as_published("alexnetf", KINDS["alexnetf"]())
    with pytest.raises(ValueError, match=r"file is a published checkpoint of another network: network_\w+"):
        published.convert(checkpoint, AlexNetF(widths=(3, 4, 5, 6, 8), image_size=8), "file")
    with pytest.raises(ValueError, match="another network"):
        published.convert(checkpoint, KINDS["lenet"](), "file")
