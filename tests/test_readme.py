"""The README's blocks of code run as they stand, and what they add to the library does what it says."""
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from modules import IF, FeedbackSNN, TernaryCouple, notices, synapses
from tests import preloaded
from tests.processes import BRIEF, REPOSITORY, environment

README = (REPOSITORY / "README.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", README, re.DOTALL))


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Write a block to a file, and run it as a process."""
    def run(name: str, *flags: object, fails: bool = False) -> str:
        path = tmp_path / name
        start = preloaded.run if path.exists() else partial(subprocess.run, capture_output=True, text=True)
        path.write_text(BLOCKS[name])
        done = start([sys.executable, str(path), *map(str, flags)], cwd=tmp_path, env=environment(), timeout=300)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def block(name: str) -> dict:
    """The names that a block defines."""
    defined = {"__name__": name.removesuffix(".py")}
    exec(compile(BLOCKS[name], name, "exec"), defined)
    return defined


def test_length_and_blocks() -> None:
    """A researcher has five minutes; every block of Python is run by a test below."""
    assert len(README.splitlines()) < 180
    assert README.count("```python") == len(BLOCKS) == 5
    for path in re.findall(r"\]\((docs/[^)]+)\)", README):
        assert (REPOSITORY / path).exists(), path


def test_network() -> None:
    net = block("network.py")
    assert net["rates"].shape == (4, 384, 8, 8) and 0 <= net["rates"].min() and net["rates"].max() <= 1
    assert all(p.grad is not None for p in net["net"].parameters())


def test_a_neuron(script, tmp_path) -> None:
    """Trained by a script; the fast engine says once that it leaves it to the dense one, with the same results."""
    flags = ("-d", "digits", *BRIEF, "--max-iters", 2, "--test-limit", 40)
    output = script("hard_reset.py", *flags, "-c", tmp_path / "auto")
    assert output.count("it does not know neurons of type HardReset") == 1
    script("hard_reset.py", *flags, "--engine", "dense", "-c", tmp_path / "dense")
    first, second = (torch.load(tmp_path / name / "checkpoint.pth.tar", weights_only=True)["state_dict"]
                     for name in ("auto", "dense"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_synapse() -> None:
    """Its window is simulated by the event engine, bit for bit; without the window it refuses, and dense runs."""
    kind, grid = block("excitatory.py")["Excitatory"], 2.0**-6
    torch.manual_seed(0)
    net = FeedbackSNN(input=synapses.Conv2d(2, 3, 3), layers=[kind(3, 5)], neuron=IF(), time_step=20,
                      couple=TernaryCouple(v_threshold=2**-5), time_step_back=30)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_((4 * parameter / grid).round() * grid)
        net.layers[0].weight.sub_(net.layers[0].weight.mean().div(grid).round() * grid)  # some are negative
    x, found = (torch.randn(3, 2, 8, 9) / grid).round() * grid, {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for engine in ("event", "dense"):
            net.engine = engine
            net.zero_grad()
            rates = net(x)
            (rates * (rates.detach() / grid).round() * grid).sum().backward()
            found[engine] = [rates.detach(), *(p.grad.clone() for p in net.parameters())]
    assert all(map(torch.equal, *found.values())) and all(t.any() for t in found["event"])
    net.engine = "event"
    del kind.window
    notices.GIVEN.clear()
    with pytest.warns(UserWarning, match="synapses of type Excitatory, which define no window"):
        assert torch.equal(net(x), found["dense"][0])


def make_images(root: Path) -> None:
    for part, number in (("train", 12), ("test", 4)):
        for kind in ("circle", "square"):
            (root / part / kind).mkdir(parents=True)
            for n in range(number):
                image = Image.new("RGB", (40, 32))
                draw = ImageDraw.Draw(image)
                (draw.ellipse if kind == "circle" else draw.rectangle)((4 + n, 4, 24 + n, 24), fill="white")
                image.save(root / part / kind / f"{n}.png")


def test_data_and_flags(script, tmp_path) -> None:
    """Trained, resumed and evaluated as a process; the script's own flag is stored and part of the experiment."""
    make_images(tmp_path / "images")
    flags = (*BRIEF, "--path", tmp_path / "images", "-j", 0)
    run = ("-c", tmp_path / "run")
    assert "side=32" in script("my_images.py", *flags, *run, "--side", 32, "--epochs", 1)
    resumed = script("my_images.py", *flags, *run, "--resume", "auto", "--epochs", 2)
    assert "side=32" in resumed and "finished after 2 epochs" in resumed
    best = tmp_path / "run/model_best.pth.tar"
    first, second = (script("my_images.py", "--resume", best, "-e", "--gpu-id", -1, "-j", 0) for _ in range(2))
    assert first == second and "top-1" in first
    refused = script("my_images.py", *run, "--resume", "auto", "--side", 28, "--gpu-id", -1, fails=True)
    assert "another --side" in refused and "Traceback" not in refused
    (tmp_path / "images/test/square").rename(tmp_path / "images/test/oblong")
    refused = script("my_images.py", *flags, fails=True)
    assert "should hold the folders circle, square" in refused and "Traceback" not in refused


def test_an_engine(script, tmp_path) -> None:
    """Known to --engine, to the summary and to --help."""
    output = script("watching.py", "-d", "digits", *BRIEF, "--max-iters", 1, "--test-limit", 20, "--engine", "watching",
                    "-c", tmp_path / "run")
    assert "engine watching" in output and "spikes per step: [0." in output
    assert "watching" in script("watching.py", "--help")
