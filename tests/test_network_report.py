"""The report of a network: what it writes, that its numbers are right, and that it leaves everything as it was."""
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from modules import LIF, FeedbackSNN, SpikeStatistics, engines, synapses
from tests.networks import sample_input, small
from tests.processes import REPOSITORY, environment
from utils import curves, energy, figures, measures, metrics, pages, report

PICTURES = ("rates", "raster", "potentials", "equilibrium", "gradient", "energy")


def made(name: str, **settings) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A small network in float32, inputs and classes."""
    torch.manual_seed(0)
    model = small(name, gain=2.0, dropout=0.2, engine="event", **settings).float()
    return model, sample_input(name, model, batch=5).float(), torch.arange(5)


@pytest.mark.parametrize("name, leak", [("lenet", 1.0), ("alexnetf", 1.0), ("convnetf", 0.9)])
def test_everything_is_written_and_left_as_it_was(name: str, leak: float, tmp_path) -> None:
    """Files of the four kinds of network; engine, modes, gradients, weights and random state are untouched."""
    model, x, y = made(name, leak=leak)
    model.train().network.eval()  # modes that differ
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    before = ([m.training for m in model.modules()], [p.clone() for p in model.parameters()], torch.get_rng_state())
    with torch.no_grad():
        found = report.write(model, x, y, tmp_path / "report", scale_factor=20, batch=10, samples=3)
    assert [m.training for m in model.modules()] == before[0] and torch.equal(torch.get_rng_state(), before[2])
    assert all(map(torch.equal, model.parameters(), before[1])) and model.network.engine == "event"
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["classifier.weight"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    for picture in PICTURES:
        assert (tmp_path / "report" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report" / "report.md").read_text()
    assert all(f"({picture}.png)" in page for picture in PICTURES) and "{" not in page
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == found
    assert found["how"]["samples"] == 3 and "scale_factor / batch` = 20 / 10" in page

    statistics = SpikeStatistics()
    with torch.no_grad():
        model.eval()(x[:3], statistics)
    assert [layer["forward"]["rate"] for layer in found["rates"]] == pytest.approx(statistics.forward_rates.tolist())
    for direction, histogram in found["histograms"].items():
        bin_width = histogram["rates"][1] - histogram["rates"][0]
        for layer, shares in zip(found["rates"], histogram["shares"]):
            mean = sum(rate * share for rate, share in zip(histogram["rates"], shares))
            assert sum(shares) == pytest.approx(1) and abs(mean - layer[direction]["rate"]) < bin_width / 2
            assert layer[direction]["silent"] <= shares[0] + 1e-6
    assert any(layer["backward"]["rate"] > 0 for layer in found["rates"])


def test_gradient_of_the_report() -> None:
    """With more steps the spikes' gradient comes closer to IDE's; drive and dropout masks are those of training."""
    model, x, y = made("alexnetf")
    network = model.network
    own = measures.call(model.train(), network, x, y, 5 * 4.0, nn.functional.cross_entropy,
                        engines.select("event", x.device))
    rates = network(x, keys=torch.arange(5)).detach().requires_grad_()
    loss = 4 * nn.functional.cross_entropy(model.classifier(rates.flatten(1)), y, reduction="sum")
    torch.testing.assert_close(own.gradient, torch.autograd.grad(loss, rates)[0])
    found = measures.gradient(own, network)
    assert found["converged"] and found["sweeps"] > 1 and len(found["parameters"]) == 11
    for values in found["parameters"].values():
        assert values["error"][-1] < values["error"][0] / 4 and values["cosine"][-1] > 0.98
    own = replace(own, circuit=replace(own.circuit, tolerance=0.9))  # the exact gradient is exact all the same
    assert measures.gradient(own, network) == found
    network.requires_grad_(False)
    assert measures.gradient(own, network)["sweeps"] == found["sweeps"]


def test_a_network_that_does_not_settle_is_named(tmp_path) -> None:
    """Strong random feedback is no contraction: both warnings, in words. The same network with weak one has none."""
    torch.manual_seed(0)
    network = FeedbackSNN(input=synapses.Linear(5, 20), feedback=synapses.Linear(20, 20, bias=False), engine="dense")
    with torch.no_grad():
        network.input.weight.mul_(3)
        network.feedback.weight.copy_(torch.randn(20, 20) / 10)
    x, y = torch.randn(8, 5), torch.zeros(8, dtype=torch.long)
    found = report.write(network, x, y, tmp_path)  # a FeedbackSNN alone is a model too
    assert found["equilibrium"]["unsettled"] == [] and "Warning" not in (tmp_path / "report.md").read_text()
    first, last = (found["equilibrium"]["distances"][0][i] for i in (0, -1))
    assert last < first / 8
    with torch.no_grad():
        network.feedback.weight.mul_(1000)
    with pytest.warns(UserWarning, match="did not converge"):
        found = report.write(network, x, y, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert found["equilibrium"]["unsettled"] == [0] and "layer 0 does not settle" in page
    assert not found["gradient"]["converged"] and "the exact gradient did not converge" in page


def test_numbers_are_written_out() -> None:
    """Never as a power of ten, unless they are tiny."""
    assert [pages.number(value) for value in (2e-5, 0.5, 999.4, 999.6)] == ["2.00e-05", "0.5", "999", "1,000"]


def test_a_network_that_never_fires(tmp_path, capsys, monkeypatch) -> None:
    """It is what one asks a report about: a page with its pictures or, where those cannot be drawn, the page alone."""
    model, x, y = made("lenet")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    report.write(model, x, y, tmp_path / "whole")
    assert "warning" not in capsys.readouterr().out
    assert all((tmp_path / "whole" / f"{picture}.png").exists() for picture in PICTURES)
    monkeypatch.setattr(figures, "of_report", lambda *_: 1 / 0)
    found = report.write(model, x, y, tmp_path / "page")
    assert "page could not be drawn (ZeroDivisionError" in capsys.readouterr().out
    assert json.loads((tmp_path / "page" / "report.json").read_text()) == found
    assert (tmp_path / "page" / "report.md").exists()


def test_energy_by_hand() -> None:
    """A network whose numbers can be checked on paper: 100 weights and 100 units in 8 KB, so 5 pJ for each number."""
    machine = energy.Machine(weights=100, units=100, time_step=30)
    assert machine.bits == 5 and machine.memories == {"weights": "8 KB", "potentials": "8 KB", "history": "32 KB"}
    assert energy.Machine(weights=3_700_000, units=10**5, time_step=30).memories["weights"] == "DRAM"
    work = {"spikes": 10.0, "products": 2.0, "updates": 100.0}
    memory = 10 * (0.9 + 15) + 2 * (4.6 + 15) + 100 * (0.9 + 10)
    assert list(machine.energy(work).values()) == pytest.approx([10 * 0.9 + 2 * 4.6, memory])

    forward = {"steps": 30, "updates": [2000.0, 1000.0], "products": {"input": 50.0},
               "operations": {"layers.0": 60.0, "feedback": 20.0},
               "couplings": {"input": 50.0, "layers.0": 200.0, "feedback": 100.0}}
    backward = {"steps": 250, "updates": [25000.0],
                "operations": {"layers.0": 5.0, "feedback": 3.0}, "couplings": {"layers.0": 120.0, "feedback": 60.0},
                "products": {"input": 30.0, "layers.0": 110.0, "feedback": 40.0}}
    inference = energy.inference(forward, readout=7)
    assert inference["quantised"]["narrow products"] == 300 and inference["quantised"]["products"] == 57
    assert inference["quantised"]["updates"] == 100
    training = energy.training(forward, backward, sweeps=4, readout=7, parameters=100 / 10)
    assert training["SPIDE"]["spikes"] == 88 and training["SPIDE"]["gradient products"] == 187
    assert training["IDE"]["products"] == 50 + 14 + 4 * 120 + 3 * 60
    through_time = training["backpropagation through time"]
    assert through_time["products"] == 50 + 14 + 30 * 200 + 29 * 100 and through_time["gradient spikes"] == 80
    assert through_time["stored"] == 30 * 100 and training["IDE"]["optimizer products"] == 30
    assert [work["updates"] for work in training.values()] == [28000, 3400, 6000]

    for works, counts in ((inference, forward), (training, backward)):
        compared = machine.compare(works, counts)
        first, *others = works
        inner = sum(n for name, n in counts["operations"].items() if name != "input")
        slots = counts["steps"] * sum(n for name, n in counts["couplings"].items() if name != "input")
        assert compared["density"] == inner / slots
        for other in others:
            for model, density in compared["break_even"][other].items():
                wins = compared["energy"][first][model] < compared["energy"][other][model]
                assert wins == (density is not None and compared["density"] < density)
                if density is not None:  # at which the two take the same
                    work = {**works[first], "spikes": works[first]["spikes"] - inner + density * slots}
                    assert machine.energy(work)[model] == pytest.approx(compared["energy"][other][model])
    assert compared["break_even"]["IDE"]["with memory"] is None


def test_the_page_says_where_spikes_lose(tmp_path) -> None:
    """As many spikes as there can be lose against a quantised network, and the page says so with the density."""
    model, x, y = made("lenet")
    with torch.no_grad():
        for synapse in (model.network.input, *model.network.layers):
            if synapse.bias is not None:
                synapse.bias.fill_(1.5)
    report.write(model, x, y, tmp_path)
    verdicts = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| quantised | ")]
    assert len(verdicts) == 3 and all("**spikes lose**" in line and "%" in line for line in verdicts[1:])


def test_networks_that_no_report_can_be_made_of(tmp_path) -> None:
    """One sentence each."""
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = FeedbackSNN(input=synapses.Linear(4, 4))

        def forward(self, x):
            return self.network(self.network(x))

    class Uses(nn.Module):
        """Does with samples and rates as it is told."""

        def __init__(self, samples, rates) -> None:
            super().__init__()
            self.network, self.samples, self.rates = FeedbackSNN(input=synapses.Linear(4, 4)), samples, rates

        def forward(self, x):
            return self.rates(self.network(self.samples(x)))

    x, y = torch.rand(2, 4), torch.tensor([0, 1])
    pair = nn.Sequential(FeedbackSNN(input=synapses.Linear(4, 4)), FeedbackSNN(input=synapses.Linear(4, 3)))
    for model, inputs, words in ((nn.Linear(4, 4), x, "holds 0"), (pair, x, "holds 2"), (Twice(), x, "2 times"),
                                 (Uses(lambda x: x.repeat(3, 1), lambda rates: rates[:2]), x, "makes 6 of 2"),
                                 (Uses(lambda x: x, Tensor.detach), x, "does not depend on its rates"),
                                 (pair[0], x[:0], "at least one sample")):
        with pytest.raises(ValueError, match=words):
            report.write(model, inputs, y, tmp_path)


def test_other_layers_and_frozen_weights(tmp_path) -> None:
    """A head of one's own with layers that are not counted, and a network of which nothing is trained."""
    network = FeedbackSNN(input=synapses.Linear(6, 8), layers=[synapses.Linear(8, 5)], neuron=LIF(leak=0.9))
    model = nn.Sequential(network, nn.BatchNorm1d(5), nn.Linear(5, 3))
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    means = model[1].running_mean.clone()
    found = report.write(model, torch.rand(4, 6), torch.tensor([0, 1, 2, 0]), tmp_path)
    assert torch.equal(model[1].running_mean, means) and found["gradient"]["parameters"] == {}
    assert "reading of data, BatchNorm1d layers." in (tmp_path / "report.md").read_text()
    assert found["energy"]["inference"]["work"]["spikes"]["products"] == 6 * 8 + 15


class Hard(LIF):
    """Goes back to the reset potential, wherever it stood."""

    def step_(self, potential, current, spikes) -> None:
        potential.mul_(self.leak).add_(current)
        torch.ge(potential, self.v_threshold, out=spikes)
        potential.masked_fill_(spikes.bool(), self.u_rest)


def test_a_neuron_of_one_s_own_in_half_precision(tmp_path, capsys) -> None:
    """Potentials are those that there are, the page says what the equilibrium is not of, and pictures are drawn."""
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = FeedbackSNN(input=synapses.Linear(6, 8), neuron=Hard(leak=0.9), time_step=9, engine="dense")

        def forward(self, x):
            return self.network(x=x)

    torch.manual_seed(0)
    model, x, y = Named().bfloat16(), torch.rand(4, 6).bfloat16(), torch.tensor([0, 1, 2, 0])
    model.network.input.weight.data.mul_(6)
    report.write(model, x, y, tmp_path)
    assert "Note: Hard is no neuron of the library" in (tmp_path / "report.md").read_text()
    assert "warning" not in capsys.readouterr().out and all((tmp_path / f"{name}.png").exists() for name in PICTURES)
    own = measures.call(model, model.network, x, y, 1.0, nn.functional.cross_entropy, engines.require("dense"))
    recording = measures.record(own, 4)
    fired = recording.trains["forward"][0] == 1
    assert fired.any() and (recording.potentials["forward"][0][fired] == -1).all()


def write_run(folder, count: int = 30) -> None:
    """Rows as a training run leaves them, two of evaluation among them."""
    folder.mkdir()
    rows = []
    for number in range(1, count + 1):
        rows.append({"phase": "train", "epoch": 1, "iteration": 10 * number, "loss": 2 / number, "top1": 3 * number,
                     "forward_rates": [0.2, 0.03], "backward_rates": [0, 0.00123], "saturated": 0, "seconds": 0.5})
        if number % 15 == 0:
            rows.append({"phase": "test", "epoch": 1, "iteration": 10 * number, "loss": 1.0, "top1": 50.0,
                         "forward_rates": [0.2, 0.03]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_curves_of_runs(tmp_path) -> None:
    """The command draws several runs without a display or pyplot, whatever backend is set, and prints the table."""
    for name in "ab":
        write_run(tmp_path / name)
    program = ("import sys; sys.argv[1:] = %r\nfrom utils import curves\ncurves.main()\n"
               "assert 'matplotlib.pyplot' not in sys.modules")
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "--against", "seconds", "--rows", "3", "--output",
                 str(tmp_path / "out.png")]
    done = subprocess.run([sys.executable, "-c", program % arguments], cwd=REPOSITORY, capture_output=True, text=True,
                          env=environment() | {"MPLBACKEND": "TkAgg", "DISPLAY": ""}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.count("| 300 | 0.067 | 90.0% | .20 .030 | 0 .0012 |") == 2
    assert done.stdout.count("| 100 | 0.200 | 30.0% |") == 2
    for against, end in (("iterations", 300), ("seconds", 150)):
        loss, _, forward, _ = curves.draw({"a": metrics.read(tmp_path / "a")}, against).axes
        training, test = loss.get_lines()
        assert training.get_xdata()[-1] == test.get_xdata()[-1] == end and len(test.get_xdata()) == 2
        assert [len(line.get_xdata()) for line in forward.get_lines()] == [30, 30]


def test_rows_of_a_run_that_is_writing(tmp_path, monkeypatch) -> None:
    """What is whole is read; without any row of training, or with a damaged one, there is a sentence."""
    def refused(sentence: str, *flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["utils.report", str(tmp_path), *flags])
        with pytest.raises(SystemExit, match=sentence):
            curves.main()

    row = {"phase": "test", "iteration": 1, "loss": 1.0, "top1": 10.0}
    refused("holds no rows of training")
    (tmp_path / "metrics.jsonl").write_text(f'{json.dumps(row)}\n{{"phase": "tr')
    assert metrics.read(tmp_path) == [row]
    refused("without --log-every 0")
    metrics.append(tmp_path, [row], lasting=False)  # behind what was torn
    refused("metrics.jsonl, line 2, is no row")
    for name in ("phase", "iteration", "loss", "top1", "seconds"):
        rows = [row | {"phase": "train", "seconds": 1.0}] * 2
        rows[1] = {key: value for key, value in rows[1].items() if key != name}
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(own) + "\n" for own in rows))
        refused(f"line 2, .*KeyError: '{name}'")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(rows[0]))  # as an editor leaves it
    assert metrics.read(tmp_path) == rows[:1]
    metrics.cut(tmp_path, tmp_path, finished=0, running=True, iteration=9, evaluated=True)
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(rows[0]) + "\n"
    refused("nowhere/a.png cannot be used", "--output", str(tmp_path / "nowhere" / "a.png"))
    refused("2", "--output", str(tmp_path / "a.pdf"))


def test_names_of_folders_are_drawn_as_they_are() -> None:
    """Neither as a formula, nor left out of the legend."""
    row = {"phase": "train", "iteration": 1, "loss": 1.0, "top1": 10.0, "seconds": 1.0, "forward_rates": [0.5]}
    figure = curves.draw({"lr$x^$": [row], "_old": [row]}, "iterations")
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert [text.replace("\\$", "$") for text in texts[::2]] == ["lr$x^$, train", "./_old, train"]


def test_lines_differ_in_grey() -> None:
    """Neighbouring layers differ in line and marker, and all in lightness."""
    styles = [figures.style(number, 6) for number in range(6)]
    lightness = [0.3 * style["color"][0] + 0.59 * style["color"][1] + 0.11 * style["color"][2] for style in styles]
    assert all(b - a > 0.05 for a, b in zip(lightness, lightness[1:]))
    assert len({(style["linestyle"], style["marker"]) for style in styles}) == 6


def test_rows_of_the_table() -> None:
    """Each once where there are few, without rates that there are none of, as of IDE; evaluations are left out."""
    rows = [{"phase": "train", "iteration": 5, "loss": 2.0, "top1": 10.0, "forward_rates": [0.5]},
            {"phase": "test", "iteration": 5, "loss": 3.0, "top1": 20.0, "forward_rates": [0.5]},
            {"phase": "train", "iteration": 9, "loss": 1.0, "top1": 30.0, "forward_rates": [0.0],
             "backward_rates": [1.0]}]
    assert curves.rates_table(rows, 12).splitlines()[2:] == [
        "| 5 | 2.000 | 10.0% | .50 | – |", "| 9 | 1.000 | 30.0% | 0 | 1.0 |"]
    assert curves.rates_table(rows, 1).splitlines()[2:] == ["| 9 | 1.000 | 30.0% | 0 | 1.0 |"]
