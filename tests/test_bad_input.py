"""Every mistake of a user ends in one clear sentence, a non-zero status, and nothing lost."""
import os
import runpy
import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from modules.engines import EngineError
from tests import cifar
from tests.processes import BRIEF, REPOSITORY, run
from tests.recordings import make_dataset

LENET = ("mnist_lenet.py", "-d", "digits", *BRIEF)


@pytest.fixture
def sentence(monkeypatch, tmp_path):
    """Run a script within this process and return the sentence that it ends with."""
    monkeypatch.chdir(tmp_path)

    def end(script: str, *flags: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        message = stopped.value.code
        assert isinstance(message, str), f"ended with status {message} and no sentence"
        assert "Traceback" not in message and "\n" not in message.strip()
        return message

    return end


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run of LeNet on digits, one iteration long."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run(*LENET, "--max-iters", 1, "--test-limit", 4, "-c", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("flags, words", [
    (("--leaky", 0), "--leaky must be 1 (IF) or lie in (0, 1)"),
    (("--leaky", 1.5), "--leaky must be 1 (IF) or lie in (0, 1)"),
    (("--leaky", "nan"), "--leaky must be 1 (IF) or lie in (0, 1)"),
    (("--time_step", 0), "--time_step must be at least 1"),
    (("-tb", -3), "--time_step_back must be at least 1"),
    (("--vth", 0), "--vth must be a positive number"),
    (("--vth", "inf"), "--vth must be a positive number"),
    (("--vth_back", -1), "--vth_back must be positive"),
    (("--train-batch", 0), "--train-batch must be at least 1"),
    (("--test-batch", -1), "--test-batch must be at least 1"),
    (("--max-iters", 0), "--max-iters must be at least 1"),
    (("--save-every", 0), "--save-every must be at least 1"),
    (("--workers", -1), "--workers must not be negative"),
    (("--lr", "nan"), "--lr must be a positive number"),
    (("--lr", "1e300"), "--lr must be a positive number in float32, not 1e+300"),
    (("--vth", "1e39"), "--vth must be a positive number in float32"),
    (("--leaky", "1e-50"), "--leaky must be 1 (IF) or lie in"),
    (("-tb", "99999999999999999999"), "--time_step_back must be at least 1 and below 2^31"),
    (("--scale_factor", 0), "--scale_factor must be a positive number"),
    (("--drop", 1), "--drop must lie in [0, 1)"),
    (("--u_rest", 1), "--u_rest (1.0) must be below the threshold (1.0)"),
    (("--u_rest_back", 0.5), "--u_rest_back (0.5) must be below the threshold (0.5)"),
    (("--vth_back", 0, "--u_rest_back", 2), "--u_rest_back (2.0) must be below the threshold (1.0)"),
    (("--schedule", 8, 4), "--schedule must list increasing epochs, not 8 4"),
    (("--schedule", 4, 4), "--schedule must list increasing epochs"),
    (("--accumulate", 0), "--accumulate must be at least 1"),
    (("--gpu-id", "two"), "--gpu-id takes the number of a GPU"),
    (("--evaluate",), "--evaluate needs a checkpoint"),
    (("--manualSeed", -1), "--manualSeed must lie between"),
    (("--resume", "missing.pth.tar"), "there is no checkpoint missing.pth.tar"),
    (("--evaluate", "--resume", "missing.pth.tar"), "there is no checkpoint missing.pth.tar"),
])
def test_arguments_out_of_range(sentence, flags, words) -> None:
    """Values that make no sense are refused before anything is read or written."""
    assert words in sentence("mnist_lenet.py", "-d", "digits", *flags)
    assert os.listdir() == []


def test_more_steps_than_frames(sentence) -> None:
    """Each step of an event network needs a frame."""
    assert "--time_step (30) must not exceed --data-len (10)" in sentence("dvs_cifar_convnetf.py", "--data-len", 10)


def test_unknown_gpu(sentence, monkeypatch) -> None:
    """A GPU id that does not exist is named, with the number of those that do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "there is no GPU 5: this machine has 2" in sentence("mnist_lenet.py", "-d", "digits", "--gpu-id", 5)


@pytest.mark.parametrize("script, dataset", [("mnist_lenet.py", "mnist"), ("mnist_lenet.py", "fashionmnist"),
                                             ("cifar_alexnetf.py", "cifar10"), ("cifar_cifarnetf.py", "cifar100")])
def test_missing_images_without_network(sentence, monkeypatch, script, dataset) -> None:
    """Without data and network the sentence says what is missing and where it was looked for."""
    def refuse(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    message = sentence(script, "-d", dataset, "--path", "here")
    assert f"{dataset} is not in here" in message and "--path" in message


def test_truncated_images(sentence, monkeypatch) -> None:
    """A damaged CIFAR batch or MNIST file is named."""
    folder = cifar.make_batches(Path("cifar"))
    batch = folder / "data_batch_3"
    cifar.accept_any_md5(monkeypatch.setattr)
    batch.write_bytes(batch.read_bytes()[:-100])
    assert "data_batch_3 is truncated or damaged" in sentence("cifar_alexnetf.py", "--path", "cifar")

    folder = Path("mnist/MNIST/raw")
    folder.mkdir(parents=True)
    for part, count in (("train", 3), ("t10k", 2)):
        for kind, sizes in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            header = bytes([0, 0, 8, len(sizes)]) + b"".join(n.to_bytes(4, "big") for n in sizes)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + bytes(torch.Size(sizes).numel()))
    images = folder / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    message = sentence("mnist_lenet.py", "--path", "mnist")
    assert "train-images-idx3-ubyte is truncated or damaged (2367 bytes where its header announces 2368)" in message


def test_truncated_recording(sentence) -> None:
    """A damaged AEDAT file is named."""
    make_dataset(".", train=1, test=1, events=100)
    recording = Path("cifar10-dvs/cat/cifar10_cat_0.aedat")
    recording.write_bytes(recording.read_bytes()[:-3])
    message = sentence("dvs_cifar_convnetf.py", "--path", ".")
    assert "cifar10_cat_0.aedat is truncated or damaged" in message


@pytest.mark.parametrize("spoil, words", [
    (lambda contents: contents[:len(contents) // 2], "is damaged or no checkpoint"),
    (lambda contents: b"", "is damaged or no checkpoint"),
    (lambda contents: b"not a checkpoint", "is damaged or no checkpoint"),
    (lambda contents: contents[:500_000] + bytes([contents[500_000] ^ 1]) + contents[500_001:], "checksum"),
])
def test_damaged_checkpoint(sentence, trained, spoil, words) -> None:
    """A truncated, empty, foreign or bit-flipped checkpoint is refused, and a whole one beside it named."""
    folder = shutil.copytree(trained, "run")
    path = Path(folder) / "checkpoint.pth.tar"
    path.write_bytes(spoil(path.read_bytes()))
    message = sentence("mnist_lenet.py", "--resume", path)
    assert words in message and "try run/model_best.pth.tar" in message


def test_damaged_checkpoint_and_resume_auto(trained, tmp_path, capfd) -> None:
    """--resume auto says that the newest file is damaged and goes on from the best one."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "checkpoint.pth.tar").write_bytes(b"PK")
    done = run(*LENET, "--resume", "auto", "-c", folder, "--max-iters", 2, "--test-limit", 4)
    assert done.returncode == 0, done.stderr
    assert "checkpoint.pth.tar is damaged" in done.stdout and "iteration 1" in done.stdout
    assert torch.load(folder / "checkpoint.pth.tar", weights_only=True)["iteration"] == 2


def test_checkpoint_of_another_network(sentence, trained) -> None:
    """Networks and class counts that differ are both named."""
    message = sentence("cifar_alexnetf.py", "--resume", trained / "checkpoint.pth.tar")
    assert "holds a LeNet with 10 classes" in message or "holds 'digits' for --dataset" in message
    stored = torch.load(trained / "checkpoint.pth.tar", weights_only=True)
    stored["network"]["num_classes"] = 47
    torch.save(stored, "other.pth.tar")
    message = sentence("mnist_lenet.py", "--resume", "other.pth.tar")
    assert "LeNet with 47 classes" in message and "LeNet with 10 classes" in message


def test_another_experiment(sentence, trained) -> None:
    """Flags that make a resumed run another experiment are refused unless --override is given."""
    flags = ("--resume", trained / "checkpoint.pth.tar", "--time_step", 7, "--vth", 1.5)
    message = sentence("mnist_lenet.py", *flags)
    assert "--time_step was 6 and is now 7" in message and "--vth was 1.0 and is now 1.5" in message
    assert "--override" in message
    done = run("mnist_lenet.py", *flags, "--override", "--dry-run", "--epochs", 20)
    assert done.returncode == 0, done.stderr
    assert "changed: --epochs was 16 and is now 20" in done.stdout
    assert "changed: --time_step was 6 and is now 7" in done.stdout


def test_unwritable_folder(sentence) -> None:
    """A checkpoint folder that cannot be made is refused before training starts."""
    Path("file").write_text("")
    message = sentence("mnist_lenet.py", "-d", "digits", "-c", "file/run")
    assert "cannot write checkpoints to file/run" in message


def test_loss_not_finite(sentence, trained, monkeypatch) -> None:
    """Training stops at the iteration whose loss is not finite, and keeps the checkpoint of before."""
    folder = Path(shutil.copytree(trained, "run"))
    before = (folder / "checkpoint.pth.tar").read_bytes()
    cross_entropy, calls = torch.nn.functional.cross_entropy, []

    def overflow(*arguments, **settings):
        calls.append(1)
        return cross_entropy(*arguments, **settings) * (float("inf") if len(calls) == 3 else 1)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", overflow)
    message = sentence("mnist_lenet.py", "--resume", folder / "checkpoint.pth.tar", "--save-every", 4)
    assert "the loss is not finite at iteration 4" in message
    assert (folder / "checkpoint.pth.tar").read_bytes() == before


@pytest.mark.parametrize("error, words", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--accumulate"),
    (MemoryError(), "take a smaller --train-batch"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "--precision bf16"),
    (EngineError("the engine cuda:tf32 cannot be used here: it failed its trial"), "it failed its trial")])
def test_devices_that_do_not_suffice(sentence, monkeypatch, error, words) -> None:
    """Memory that runs out while training, or an engine that failed its trial: what to do about it, in a sentence."""
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", fail)
    assert words in sentence("mnist_lenet.py", "-d", "digits", *BRIEF)
