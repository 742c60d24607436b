"""Experiments as objects: defaults, what settles an argument, flags of a script's own, mistakes and faults."""
import copy
import json
import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from torchvision import transforms

import cifar_alexnetf
import cifar_cifarnetf
import dvs_cifar_convnetf
import mnist_lenet
from models import LeNet, dynamics
from tests.small import IMAGES, LABELS, made, small
from utils import distributed, provenance
from utils.cli import Arguments
from utils.errors import UserError
from utils.experiment import choose_device, seed_everything

pytestmark = pytest.mark.usefixtures("unpictured")

OLD = Path(__file__).parent / "golden" / "run_at_85cf78f.pth.tar"

# From the design, sections 3 and 4: what the four scripts share, and where they differ.
SHARED = {
    "path": "./data/raw", "workers": 4, "vth": 1.0, "vth_back": 0.5, "u_rest": None, "u_rest_back": None, "leaky": 1.0,
    "time_step": 30, "train_batch": 128, "test_batch": 200, "gamma": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
    "optimizer": "SGD", "start_epoch": None, "manualSeed": None, "checkpoint": None, "resume": None, "evaluate": False,
    "gpu_id": "0", "method": "spide", "ide_tolerance": 1e-4, "ide_max_sweeps": 100, "engine": "auto",
    "precision": "tf32", "accumulate": 1, "max_iters": None, "test_limit": None, "save_every": None,
    "override": False, "deterministic": False, "dry_run": False,
    "log_every": 10, "export": None, "new_readout": False, "report": False, "report_samples": 32}
CIFAR = {"time_step_back": 250, "scale_factor": 400.0, "epochs": 100, "schedule": [50, 75], "lr": 0.05, "warmup": 400}
LENET = {"time_step_back": 100, "scale_factor": 100.0, "epochs": 60, "schedule": [20, 40], "lr": 0.1, "warmup": 0,
         "drop": 0.5}
DIGITS = {**LENET, "train_batch": 32, "scale_factor": 25.0, "epochs": 16, "schedule": [11], "workers": 0}
EVENTS = {"time_step_back": 250, "scale_factor": 400.0, "epochs": 70, "schedule": [50], "lr": 0.05, "warmup": 0,
          "drop": 0.0, "data_len": 30, "frames": "reference", "frames_path": None}


@pytest.mark.parametrize("script, dataset, own", [
    (mnist_lenet, "mnist", LENET), (mnist_lenet, "fashionmnist", LENET), (mnist_lenet, "digits", DIGITS),
    (cifar_alexnetf, "cifar10", {**CIFAR, "drop": 0.2}), (cifar_alexnetf, "cifar100", {**CIFAR, "drop": 0.2}),
    (cifar_cifarnetf, "cifar10", {**CIFAR, "drop": 0.25}),
    (cifar_cifarnetf, "cifar100", {**CIFAR, "drop": 0.25, "scale_factor": 500.0}),
    (dvs_cifar_convnetf, "cifar10-dvs", EVENTS)])
def test_every_default(script, dataset: str, own: dict) -> None:
    """The published settings, all of them; the first data set of a script is the one without a flag."""
    assert vars(script.EXPERIMENT.arguments(["-d", dataset])) == {**SHARED, **own, "dataset": dataset}
    first = next(iter(script.DATASET_DEFAULTS))
    assert vars(script.EXPERIMENT.arguments()) == vars(script.EXPERIMENT.arguments(["-d", first]))


def test_normalisation_and_augmentation() -> None:
    """As published: MNIST plain, CIFAR with crop and flip, event frames with a crop alone."""
    assert (mnist_lenet.MEAN, mnist_lenet.STD) == ((0.1307,), (0.3081,))
    train, test, transform = mnist_lenet.build_data(mnist_lenet.EXPERIMENT.arguments(["-d", "digits"]))
    assert transform is None  # nothing about a training image is random
    for part in (train, test):
        assert part[0][0].min().item() == pytest.approx(-0.1307 / 0.3081, abs=1e-6)
    for script in (cifar_alexnetf, cifar_cifarnetf):
        assert script.MEAN == (0.4914, 0.4822, 0.4465) and script.STD == (0.2023, 0.1994, 0.2010)
        crop, flip = script.AUGMENTATION
        assert isinstance(crop, transforms.RandomCrop) and (crop.size, crop.padding) == ((32, 32), 4)
        assert isinstance(flip, transforms.RandomHorizontalFlip) and flip.p == 0.5
    crop = dvs_cifar_convnetf.AUGMENTATION
    assert isinstance(crop, transforms.RandomCrop) and (crop.size, crop.padding) == ((48, 48), 4)


@pytest.mark.parametrize("script, kind, drop", [
    (mnist_lenet, "LeNet", 0.5), (cifar_alexnetf, "AlexNetF", 0.2), (cifar_cifarnetf, "CIFARNetF", 0.25),
    (dvs_cifar_convnetf, "ConvNetF", 0.0)])
def test_flags_reach_the_network(script, kind: str, drop: float) -> None:
    """What the flags of spiking networks say is what is built."""
    flags = ("-t 7 -tb 9 --vth 1.5 --u_rest -0.5 --vth-back 0 --u-rest-back=-2 --leaky 0.9 --engine dense "
             "--method ide --ide-tolerance 0.01 --ide-max-sweeps 5")
    model = script.build_model(script.EXPERIMENT.arguments(flags.split()))
    network = model.network
    assert type(model).__name__ == kind and network.engine == "dense"
    assert (network.time_step, network.time_step_back, network.neuron.leak) == (7, 9, 0.9)
    assert (network.neuron.v_threshold, network.neuron.u_rest) == (1.5, -0.5)
    assert (network.couple.v_threshold, network.couple.u_rest) == (1.5, -2)
    assert (network.method, network.tolerance, network.max_sweeps) == ("ide", 0.01, 5)
    assert [s for s in (network.input, *network.layers, network.feedback) if s is not None][-1].dropout == drop


def test_flags_of_a_script(tmp_path, capsys) -> None:
    """Both spellings, defaults of script and data set, range, plain storage, resuming, refusal, --override."""
    experiment = small()
    assert experiment.arguments().noise_level == 0.5
    assert experiment.arguments(["-d", "louder"]).noise_level == 2.0
    for spelling in ("--noise_level", "--noise-level"):
        assert experiment.arguments([spelling, "1.5", "--pick"]).noise_level == 1.5
    assert small(defaults={**experiment.defaults, "noise_level": 0.25}).arguments().noise_level == 0.25
    with pytest.raises(UserError, match="--noise_level must not be negative, but is -1"):
        experiment.arguments(["--noise-level=-1"])

    experiment.main(["--noise_level", "1.5", "--pick", "2", "--max-iters", "2", "-c", str(tmp_path)])
    assert "noise_level=1.5 " in capsys.readouterr().out
    file = str(tmp_path / "checkpoint.pth.tar")
    stored = torch.load(file, weights_only=True)["arguments"]
    assert stored["noise_level"] == 1.5 and stored["pick"] == [2] and stored["manualSeed"] >= 0
    kept = experiment.arguments(["--resume", file])
    assert (kept.noise_level, kept.pick, kept.manualSeed) == (1.5, [2], stored["manualSeed"])
    with pytest.raises(UserError, match="with another --noise_level .* was 1.5 and is now 1.0"):
        experiment.arguments(["--resume", file, "--noise-level", "1"])
    assert experiment.arguments(["--resume", file, "--noise-level", "1", "--override", "--pick", "0"]).pick == [0]
    experiment.main(["--resume", file, "--epochs", "1"])
    assert torch.load(file, weights_only=True)["iteration"] == 3


def test_a_default_that_was_edited_since(tmp_path, capsys) -> None:
    """The checkpoint's value counts, and a line says so; not of a default that was no other when the run began."""
    defaults = {**small().defaults, "lr": 0.01}
    small().main(["-c", str(tmp_path), "--max-iters", "1", "--train-batch", "6"])
    for experiment, flags, words in (
            (small(defaults=defaults), [], ["--lr is now 0.01, but the checkpoint's 0.1 counts"]),
            (small(defaults=defaults), ["--lr", "0.1"], []), (small(), [], [])):
        experiment.main(["-c", str(tmp_path), "--resume", "auto", "--dry-run", *flags])
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed: ")]
        assert said == [f"changed: the script's default of {own}" for own in words]


def test_abbreviated_dataset_has_its_defaults() -> None:
    """argparse completes ``--datas``; the defaults that depend on it follow."""
    assert small().arguments(["--datas", "louder"]).noise_level == 2.0
    assert mnist_lenet.EXPERIMENT.arguments(["--dataset=digits"]).train_batch == 32


@pytest.mark.parametrize("wrong, accumulate", [(3, 1), (-1, 2), (200, 1)])
def test_labels_of_no_class(wrong, accumulate, tmp_path) -> None:
    """In the data of one's own: a sentence, where PyTorch would raise from its depths, or a GPU die."""
    labels = LABELS.clone()
    labels[5] = wrong
    experiment = small(build_data=lambda args: (TensorDataset(IMAGES, labels), TensorDataset(IMAGES, LABELS), None))
    with pytest.raises(SystemExit, match=f"labels from {min(wrong, 0)} to .*, and the network has 3 classes"):
        experiment.main(["-c", str(tmp_path / "run"), "--accumulate", str(accumulate), "--train-batch", "24"])


def test_faults_of_a_script_are_no_mistakes_of_its_user() -> None:
    """Defaults that no flag takes, defaults that are missing, values that no checkpoint holds, a model that is none."""
    defaults = small().defaults
    with pytest.raises(ValueError, match="defaults name momentun, which is no flag"):
        small(defaults={**defaults, "momentun": 0.8}).arguments()
    with pytest.raises(ValueError, match="defaults for louder name nois"):
        small(dataset_defaults={"noise": {}, "louder": {"nois": 1}}).arguments(["-d", "louder"])
    with pytest.raises(ValueError, match="defaults name no lr"):
        small(defaults={name: value for name, value in defaults.items() if name != "lr"}).arguments()
    for name, value in (("epochs", 1.5), ("train_batch", 32.0), ("lr", None), ("schedule", 11), ("dataset", "nois")):
        with pytest.raises(ValueError, match=f"default of --[a-z-]*{name[:5]}.* is '?{value}'?, which could"):
            small(defaults={**defaults, name: value}).arguments()
    with pytest.raises(TypeError, match=r"--file makes PosixPath\('x'\)"):
        small(flags=[*small().flags, lambda p: p.add_argument("--file", type=Path)]).arguments(["--file", "x"])
    with pytest.raises(TypeError, match="made a Linear without num_classes and num_neurons and classifier"):
        small(build_model=lambda args: torch.nn.Linear(1, 1)).main(["--dry-run"])


def test_arguments_stay_what_the_user_said(tmp_path) -> None:
    """Nothing sets an argument in a whole run, training, resumed, evaluated; nothing can."""
    seen = []

    def build_model(args):
        seen.append((args, copy.deepcopy(vars(args))))
        return small().build_model(args)

    experiment = small(build_model=build_model)
    experiment.main(["-c", str(tmp_path), "--epochs", "1", "--resume", "auto"])
    experiment.main(["-c", str(tmp_path), "--epochs", "2", "--resume", "auto"])
    experiment.main(["--resume", str(tmp_path / "checkpoint.pth.tar"), "--evaluate"])
    assert [args.resume for args, _ in seen] == ["auto", "auto", str(tmp_path / "checkpoint.pth.tar")]
    assert len(seen) == 3 and all(vars(args) == before for args, before in seen)
    with pytest.raises(AttributeError, match="args.lr cannot be set"):
        seen[0][0].lr = 1.0
    with pytest.raises(AttributeError):
        del seen[0][0].lr


def test_a_drawn_seed_is_kept(tmp_path) -> None:
    """Runs without --manualSeed differ, and each goes on with its own."""
    seeds = []
    for name in "ab":
        for _ in range(2):
            small().main(["-c", str(tmp_path / name), "--resume", "auto", "--max-iters", "1"])
            stored = torch.load(tmp_path / name / "checkpoint.pth.tar", weights_only=True)
            seeds.append(stored["arguments"]["manualSeed"])
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]


def test_auto_reads_a_checkpoint_once(tmp_path, monkeypatch) -> None:
    """A checkpoint may be large and far away."""
    small().main(["-c", str(tmp_path), "--max-iters", "1"])
    load, read = torch.load, []
    monkeypatch.setattr(torch, "load", lambda path, **settings: read.append(path) or load(path, **settings))
    small().main(["-c", str(tmp_path), "--max-iters", "2", "--resume", "auto"])
    assert read == [tmp_path / "checkpoint.pth.tar"]


def raising(error: Exception):
    """A function that raises."""
    def fail(*_, **__):
        raise error

    return fail


class Failing(TensorDataset):
    """Data whose samples cannot be had."""

    def __init__(self, error: Exception) -> None:
        super().__init__(IMAGES, LABELS)
        self.error = error

    def __getitem__(self, index: int):
        raise self.error


@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError])
def test_a_fault_shows_its_traceback(kind: type, tmp_path) -> None:
    """In what a researcher edits, network or data, here or in a worker, every exception but one is a fault."""
    flags = ["-c", str(tmp_path), "--max-iters", "1"]
    with pytest.raises(kind, match="a bug"):
        small(build_model=raising(kind("a bug"))).main(flags)
    with pytest.raises(kind, match="a bug"):
        small(build_data=raising(kind("a bug"))).main(flags)
    data = Failing(kind("a bug"))
    for workers in "01":
        with pytest.raises(kind, match="a bug"):
            small(build_data=lambda args: (data, data, None)).main([*flags, "-j", workers])


def test_a_fault_of_a_network_that_is_loaded(tmp_path) -> None:
    """The file is not accused of what the network's own methods make of it."""
    class Counts(LeNet):
        def get_extra_state(self):
            return {"calls": 1}

        def set_extra_state(self, state) -> None:
            self.calls = state["cals"]

    def build_model(args):
        return Counts(widths=(2, 3, 8), image_size=8, num_classes=3, dropout=args.drop, **dynamics.of(args))

    flags = ["-c", str(tmp_path), "--max-iters", "1"]
    small(build_model=build_model).main(flags)
    with pytest.raises(KeyError, match="cals"):
        small(build_model=build_model).main([*flags, "--resume", "auto"])


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_mistake_is_one_sentence(workers: str, tmp_path) -> None:
    """In a worker too, and with all its lines; an OSError on a file below what the user gave counts as such."""
    data = Failing(UserError("file x is damaged:\nfetch it again"))
    with pytest.raises(SystemExit) as stopped:
        small(build_data=lambda args: (data, data, None)).main(["-c", str(tmp_path), "-j", workers])
    assert stopped.value.code.partition(": error: ")[2] == "file x is damaged:\nfetch it again"
    denied = PermissionError(13, "Permission denied", str(tmp_path / "images" / "1"))
    with pytest.raises(SystemExit) as stopped:
        small(build_data=raising(denied)).main(["--path", str(tmp_path), "-c", str(tmp_path)])
    assert "images/1 cannot be used (Permission denied)" in stopped.value.code
    with pytest.raises(PermissionError):
        small(build_data=raising(denied)).main(["--path", str(tmp_path / "other"), "-c", str(tmp_path / "run")])


def test_checkpoint_of_before(tmp_path, capsys) -> None:
    """A run that the code of commit 85cf78f left in the middle of its second epoch goes on where it stood."""
    class LeNet(mnist_lenet.LeNet):
        """The network of that run."""

    experiment = replace(mnist_lenet.EXPERIMENT, build_model=lambda args: LeNet(
        num_classes=10, widths=(2, 3, 8), dropout=args.drop, **dynamics.of(args)))
    file = tmp_path / "checkpoint.pth.tar"
    file.write_bytes(OLD.read_bytes())
    old = torch.load(file, weights_only=True)
    args = experiment.arguments(["--resume", str(file)])
    assert (args.dataset, args.time_step_back, args.train_batch, args.scale_factor, args.manualSeed) == (
        "digits", 20, 300, 3000, 3)
    assert args.gpu_id == "0" and args.max_iters is None  # those say what one invocation does
    experiment.main(["--resume", str(file), "--max-iters", "7", "--gpu-id", "-1"])
    assert f"resumed {file} after epoch 1, iteration 7" in capsys.readouterr().out
    experiment.main(["--resume", str(file), "--max-iters", "11", "--gpu-id", "-1", "--test-limit", "40"])
    new = torch.load(file, weights_only=True)
    assert (new["epoch"], new["batch"], new["iteration"]) == (2, 1, 11)
    assert new["history"][0] == old["history"][0] and len(new["history"]) == 2
    assert new["history"][1][1] == pytest.approx(2.30, abs=0.05)  # over the whole second epoch, from both sides
    assert {"starved", "saturated"} >= set(new["warned"]) >= set(old["warned"])
    moved = new["optimizer"]["state"][0]["momentum_buffer"] - old["optimizer"]["state"][0]["momentum_buffer"]
    assert moved.abs().max() > 0 and new["state_dict"].keys() == old["state_dict"].keys()


# Flags


def test_what_every_flag_is_to_a_run() -> None:
    """Of another experiment with another value, or said of one invocation and not taken over, or neither."""
    flags = dvs_cifar_convnetf.EXPERIMENT._parser().flags
    assert {name for name, flag in flags.items() if flag.experiment} == {
        "dataset", "train_batch", "optimizer", "scale_factor", "manualSeed", "time_step", "time_step_back", "vth",
        "vth_back", "u_rest", "u_rest_back", "leaky", "drop", "method", "data_len", "frames"}
    assert {name for name, flag in flags.items() if not flag.stored} == {
        "test_limit", "start_epoch", "max_iters", "checkpoint", "resume", "new_readout", "export", "override",
        "evaluate", "gpu_id", "report", "report_samples", "dry_run"}


def test_flags_that_exclude_each_other(tmp_path) -> None:
    """Of a group as argparse makes it: they are stored and taken over as others are."""
    def add(parser) -> None:
        group = parser.add_mutually_exclusive_group()
        group.add_argument("--brighter", type=float)
        group.add_argument("--darker", type=float)

    experiment = replace(small(), flags=[*small().flags, add])
    experiment.main(["--brighter", "1.5", "--max-iters", "1", "-c", str(tmp_path)])
    assert experiment.arguments(["--resume", str(tmp_path / "checkpoint.pth.tar")]).brighter == 1.5
    with pytest.raises(SystemExit):
        experiment.arguments(["--brighter", "1.5", "--darker", "2"])
    resumed = experiment._parse(["--resume", str(tmp_path / "checkpoint.pth.tar"), "--darker", "2"])
    assert (resumed.args.brighter, resumed.args.darker) == (None, 2.0)
    assert resumed.remarks == ("changed: --brighter was 1.5 and is now None",
                               "changed: --darker was None and is now 2.0")


def test_flags_of_every_kind(tmp_path) -> None:
    """What argparse makes is given, stored, taken over and refused, whatever it is called and made of."""
    def truth(text: str) -> bool:
        return {"yes": True, "no": False}[text]

    def add(parser) -> None:
        parser.add_argument("-k", type=int, default=1, experiment=True)
        parser.add_argument("--tag", action="append", default=["first"])
        parser.add_argument("--more", action="extend", nargs="+", type=int, default=[])
        parser.add_argument("--loud", action="count", default=0)
        parser.add_argument("--crops", nargs="*", choices=("flip", "crop"), default=[])
        parser.add_argument("--grey", type=truth, default=True)
        parser.add_argument("--sizes", type=lambda text: [*map(int, text.split(","))], default=[1, 2])
        for word in ("fast", "slow"):
            parser.add_argument(f"--{word}", dest="pace", action="store_const", const=word, default="slow")
        inner = parser.add_argument_group("light").add_mutually_exclusive_group()
        inner.add_argument("--a_b", type=int, default=0, must=("not be negative, but is", lambda value: value >= 0))
        parser.add_argument("place", nargs="?", default="here")

    experiment, file = replace(small(), flags=[*small().flags, add]), str(tmp_path / "checkpoint.pth.tar")
    flags = ("-k 5 --tag x --tag y --more 1 2 --more 3 --loud --loud --crops flip crop --grey no --sizes 3,4 --fast "
             "--a-b 3 there").split()
    expected = {"k": 5, "tag": ["first", "x", "y"], "more": [1, 2, 3], "loud": 2, "crops": ["flip", "crop"],
                "grey": False, "sizes": [3, 4], "pace": "fast", "a_b": 3, "place": "there"}
    own = vars(experiment.arguments())
    assert [own[name] for name in expected] == [1, ["first"], [], 0, [], True, [1, 2], "slow", 0, "here"]
    experiment.main([*flags, "--max-iters", "1", "-c", str(tmp_path)])
    for args in (experiment.arguments(flags), experiment.arguments(["--resume", file])):
        assert {name: getattr(args, name) for name in expected} == expected
    with pytest.raises(UserError, match=r"with another -k .* \(-k was 5 and is now 6\)"):
        experiment.arguments(["--resume", file, "-k", "6"])
    with pytest.raises(UserError, match="--a_b must not be negative, but is -1"):
        experiment.arguments(["--a-b=-1"])
    with pytest.raises(ValueError, match="the script gives 'own' the value 3, which is no flag"):
        replace(small(), flags=[*small().flags, lambda parser: parser.set_defaults(own=3)]).arguments()


@pytest.mark.parametrize("flags", [
    "--epochs 0", "--start-epoch -1", "--warmup -1", "--momentum -0.1", "--momentum nan", "--weight-decay -1",
    "--weight-decay inf", "--gamma 0", "--schedule 0 4", f"--manualSeed {2**63}", "--log-every -1", "--test-limit 0",
    "--report-samples 0", "--ide-tolerance 0", "--ide-max-sweeps 0"])
def test_values_out_of_range(flags: str) -> None:
    """The rest of what tests of the scripts refuse."""
    name, *values = flags.split()
    with pytest.raises(UserError, match=f"^{name} must .*{values[0]}"):
        small().arguments(flags.split())
    with pytest.raises(UserError, match="--start-epoch 2 is not among the 2 of --epochs"):
        small().arguments(["--start-epoch", "2"])
    with pytest.raises(UserError, match="the learning rate in effect, is 1e.299, which float32 does not hold"):
        small().arguments(["--scale_factor", "1e-300"])


def test_values_at_the_ends_of_their_range() -> None:
    assert small()._parse(["--manualSeed", "0"]).seed == 0
    assert small()._parse(["--manualSeed", str(2**63 - 1)]).seed == 2**63 - 1
    zeros = "--log-every 0 --warmup 0 --momentum 0 --weight-decay 0 --start-epoch 0 --schedule"
    args = small().arguments(zeros.split())
    assert (args.log_every, args.warmup, args.momentum, args.weight_decay, args.start_epoch) == (0, 0, 0, 0, 0)
    assert args.schedule == []
    seed_everything(2**63 - 1, deterministic=False)  # although NumPy takes 32 bits


def test_where_a_run_writes(monkeypatch) -> None:
    """A name is a folder in checkpoints/, made of script and data set unless given; a path is what it is."""
    monkeypatch.setattr("sys.argv", ["scripts/mine.py"])
    for flags, folder in (((), "checkpoints/mine-noise"), (("-d", "louder"), "checkpoints/mine-louder"),
                          (("-c", "x"), "checkpoints/x"), (("-c", "x/y"), "x/y"), (("-c", "./x"), "x"),
                          (("--resume", "auto"), "checkpoints/mine-noise")):
        assert small()._parse(flags).folder == Path(folder)
    for flags in (("-c", "."), ("-c", "./"), ("-c", ".."), ("-c", "../"), ("-c", "checkpoints/")):
        with pytest.raises(UserError, match=f"^-c {flags[1]} is no folder of one run's own"):
            small()._parse(flags)


@pytest.mark.parametrize("flag", ["-c", "--resume", "--export", "--path"])
def test_a_path_that_is_empty(flag: str, capsys) -> None:
    """A variable that a shell does not know is no wish to begin anew, to train, to write elsewhere."""
    with pytest.raises(SystemExit, match="2"):
        small().arguments([flag, ""])
    assert "names no file or folder: it is empty" in capsys.readouterr().err


def test_the_usual_drive_is_that_of_the_data_set() -> None:
    assert cifar_cifarnetf.EXPERIMENT._parse(["-d", "cifar100"]).usual_drive == 500 / 128
    assert cifar_cifarnetf.EXPERIMENT._parse(["-d", "cifar10", "--scale_factor", "1"]).usual_drive == 400 / 128


def test_flags_that_a_checkpoint_does_not_know(tmp_path) -> None:
    """A flag that is newer than the file has the default of the file's data set; of the one that is given instead."""
    file = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": {"w": torch.ones(1)}, "arguments": {"dataset": "louder", "lr": 0.5}}, file)
    args = small().arguments(["--resume", str(file)])
    assert (args.noise_level, args.lr) == (2.0, 0.5)
    assert small().arguments(["--resume", str(file), "-d", "noise", "--override"]).noise_level == 0.5


def test_what_needs_no_override(tmp_path) -> None:
    """Nothing is overridden where nothing goes on: by an evaluation, by a new readout."""
    file = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": {"w": torch.ones(1)}, "arguments": {"time_step": 4}}, file)
    with pytest.raises(UserError, match="add --override"):
        small().arguments(["--resume", str(file), "-t", "9"])
    for flag in ("--evaluate", "--new-readout", "--override"):
        assert small().arguments(["--resume", str(file), "-t", "9", flag]).time_step == 9
    for flags in (["--evaluate"], ["--export", "x"], ["--new-readout"]):
        with pytest.raises(UserError, match=f"^{flags[0]} needs a checkpoint"):
            small().arguments(flags)
    for flag in ("--evaluate", "--report", "--dry-run", "--new-readout"):
        with pytest.raises(UserError, match="goes with n"):
            small().arguments(["--resume", str(file), "--export", "x", flag])


# Devices, and where numbers come from


def test_which_gpu(monkeypatch) -> None:
    """The one of its number; of several processes, each the one at its place."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert [choose_device(number, 1).index for number in ("0", "1", "-1")] == [0, 1, None]
    with pytest.raises(UserError, match="there is no GPU 2: this machine has 2"):
        choose_device("2", 1)
    monkeypatch.setattr(distributed, "local_rank", lambda: 1)
    assert choose_device("0", 2).index == 1 and choose_device("1,0", 2).index == 0
    monkeypatch.setattr(distributed, "local_rank", lambda: 2)
    with pytest.raises(UserError, match="process 2 of this machine has no GPU: start at most 2"):
        choose_device("0", 3)


def test_provenance(tmp_path, monkeypatch) -> None:
    """Everything that numbers depend on, and the script as it was."""
    script, folder = tmp_path / "mine.py", tmp_path / "run"
    script.write_text("pass")
    folder.mkdir()
    monkeypatch.setattr("sys.argv", [str(script), "--lr", "1"])
    monkeypatch.setattr(provenance, "git_state", lambda source: {"source": str(source)})
    provenance.record(folder, Arguments({"lr": 1.0, "manualSeed": None}), seed=3, device="a GPU")
    own = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    assert json.loads((folder / "args.json").read_text()) == {
        "command": [str(script), "--lr", "1"], "arguments": {"lr": 1.0, "manualSeed": 3}, "versions": own,
        "device": "a GPU", "git": {"source": str(tmp_path)}, "earlier": []}
    assert (folder / "script.py").read_text() == "pass"
    for device in ("a CPU", "a CPU", "a GPU", "a CPU"):  # a run that goes on elsewhere
        provenance.record(folder, Arguments({"lr": 1.0, "manualSeed": None}), seed=3, device=device, before=folder)
    assert json.loads((folder / "args.json").read_text())["earlier"] == [
        {"device": "a GPU", "versions": own, "git": {"source": str(tmp_path)}}]
    assert made(tmp_path).state_dict()["versions"] == own


@pytest.mark.parametrize("changes, dirty", [("", False), (" M mnist_lenet.py\n", True)])
def test_source_of_a_run(changes: str, dirty: bool, monkeypatch) -> None:
    """Its commit, and whether files differ from that; nothing where there is no git."""
    def git(command, **_):
        return SimpleNamespace(stdout="85cf78f\n" if command[3] == "rev-parse" else changes)

    monkeypatch.setattr(provenance.subprocess, "run", git)
    assert provenance.git_state(Path(".")) == {"commit": "85cf78f", "dirty": dirty}
    for error in (FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")):
        monkeypatch.setattr(provenance.subprocess, "run", raising(error))
        assert provenance.git_state(Path(".")) is None
