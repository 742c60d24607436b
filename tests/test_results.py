"""The results that the repository claims, and the weights that it publishes."""
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import results
from mnist_lenet import EXPERIMENT, MEAN, STD
from tests.processes import BRIEF, REPOSITORY, environment, succeed
from utils import checkpoint
from utils.errors import UserError
from utils.network import load_network

WEIGHTS = REPOSITORY / "checkpoints" / "mnist_lenet.pth.tar"


def test_the_table_is_made_of_what_runs_leave(tmp_path: Path) -> None:
    """Runs that differ by their seed share a row, however they were spelt, and resumed; what is kept of them makes the
    same table and names no place."""
    runs = [tmp_path / f"run-{seed}" for seed in (1, 2)]
    for seed, run in enumerate(runs, start=1):
        succeed("mnist_lenet.py", *BRIEF, "-d", "digits", "--lr", 0.05, "--max-iters", 1 + seed, "--log-every", 1,
                "-c", run,
                "--manualSeed", seed)
    how = json.loads((runs[0] / "args.json").read_text())
    (runs[0] / "args.json").write_text(json.dumps(how | {"device": "a GPU", "git": None}))
    succeed("mnist_lenet.py", "--resume", runs[0] / "checkpoint.pth.tar", "--gpu-id=-1", "--save_every", 5, "-j0",
            "--manual", 1, "--max-iters", 3)
    for run in runs:
        results.keep(run, tmp_path / "kept")
    table = results.results(runs)
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    assert cells[:3] == ["`mnist_lenet.py --dataset digits --max-iters 3 --lr 0.05 --time-step 6 --time-step-back 8`",
                         "1, 2", "0.0667 of 16"]
    last = [float((run / "log.txt").read_text().split()[-4]) for run in runs]
    assert f"a GPU, PyTorch {torch.__version__}; then {how['device']}, PyTorch" in cells[-1]
    assert cells[3] == f"{np.mean(last):.2f} ± {np.std(last, ddof=1):.2f}"
    kept = sorted((tmp_path / "kept").iterdir())
    assert results.results(kept) == table
    assert not [file for folder in kept for file in folder.iterdir() if str(tmp_path).encode() in file.read_bytes()]


def test_many_rows_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations are all kept, and the time that training took, also of a run of sources that no git knows."""
    run = tmp_path / "run"
    succeed("mnist_lenet.py", *BRIEF, "-d", "digits", "--max-iters", 9, "--log-every", 1, "-c", run)
    monkeypatch.setattr(results, "ROWS", 3)
    results.keep(run, tmp_path / "kept")
    rows = results.metrics.read(tmp_path / "kept" / "run")
    assert [row["iteration"] for row in rows if row["phase"] == "train"] == [3, 6, 9] and len(rows) == 4
    spent = [sum(row["seconds"] for row in results.metrics.read(folder) if row["phase"] == "train")
             for folder in (run, tmp_path / "kept" / "run")]
    assert 3 * spent[1] == pytest.approx(spent[0], rel=1e-4)
    how = tmp_path / "kept" / "run" / "args.json"
    how.write_text(json.dumps(json.loads(how.read_text()) | {"git": None}))
    assert "commit" not in results.results([how.parent])


@pytest.mark.parametrize("damage, sentence", [
    (lambda run: shutil.rmtree(run), "No such file"), (lambda run: (run / "args.json").unlink(), "No such file"),
    (lambda run: (run / "args.json").write_text('{"command"'), "JSONDecodeError"),
    (lambda run: (run / "args.json").write_text('{"command": ["other.py"], "arguments": {}}'), "No module named"),
    (lambda run: (run / "log.txt").unlink(), "IndexError"),
    (lambda run: (run / "metrics.jsonl").write_text('{"phase": "test", "iteration": 3, "loss": 1, "top1": 1}\n'),
     "no median"), (lambda run: (run / "metrics.jsonl").write_text("{}\n{}\n"), "line 1, is no row")])
def test_folders_that_hold_no_result(damage: Callable, sentence: str, tmp_path: Path) -> None:
    """A sentence says what there is not."""
    run = tmp_path / "run"
    shutil.copytree(REPOSITORY / "docs" / "results" / "digits-ide-1", run)
    damage(run)
    with pytest.raises(UserError, match=sentence):
        results.results([run])


def test_no_run_counts_twice(tmp_path: Path) -> None:
    """A run and a copy of it are refused; networks that were tuned are told apart by where they came from."""
    run = REPOSITORY / "docs" / "results" / "digits-spide-1"
    shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(UserError, match="copy and .*digits-spide-1 are runs of the same command with the same seed"):
        results.results([run, tmp_path / "copy"])
    how = json.loads((run / "args.json").read_text())
    how["arguments"] |= {"new_readout": True, "resume": "/a/place/mnist.pth.tar"}
    (tmp_path / "copy" / "args.json").write_text(json.dumps(how))
    assert results.results([run, tmp_path / "copy"]).count("mnist_lenet.py") == 2
    results.keep(tmp_path / "copy", tmp_path / "kept")
    table = results.results([tmp_path / "kept" / "copy"])
    assert table == results.results([tmp_path / "copy"]) and "--new-readout --resume mnist.pth.tar`" in table
    assert "/a/place" not in (tmp_path / "kept" / "copy" / "args.json").read_text()


def test_nothing_that_is_kept_is_overwritten(tmp_path: Path) -> None:
    """Nor does a run count twice; each is a sentence of the command."""
    run = REPOSITORY / "docs" / "results" / "digits-ide-1"
    for flags, sentence in (((run, "--keep", run.parent), "exists"), ((run, f"{run}/../{run.name}"), "twice")):
        done = subprocess.run([sys.executable, "-m", "benchmarks.results", *map(str, flags)], cwd=REPOSITORY,
                              env=environment(), capture_output=True, text=True)
        assert done.returncode == 1 and sentence in done.stderr and done.stderr.count("\n") == 1


def test_every_result_of_the_readme_stands_in_docs() -> None:
    """The table of docs/results/README.md is what its files say."""
    folders = sorted(path.parent for path in (REPOSITORY / "docs" / "results").glob("*/args.json"))
    assert folders
    page = (REPOSITORY / "docs" / "results" / "README.md").read_text()
    assert results.results(folders) in page


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    args = EXPERIMENT.arguments(["--resume", str(WEIGHTS), "--evaluate"])
    model = EXPERIMENT.build_model(args)
    load_network(model, checkpoint.load(WEIGHTS).contents, WEIGHTS)
    return model.eval()


def test_the_published_weights_read_digits(network: torch.nn.Module) -> None:
    """100 images of MNIST's test set, ten of each class, that the tests hold themselves."""
    contents = torch.load(WEIGHTS, weights_only=True)
    assert WEIGHTS.stat().st_size < 3e6 and "optimizer" not in contents
    held = np.load(REPOSITORY / "tests" / "mnist.npz")
    images = (torch.from_numpy(held["images"])[:, None] / 255 - MEAN[0]) / STD[0]
    with torch.no_grad():
        found = network(images).argmax(1)
    assert (found == torch.from_numpy(held["labels"])).sum() >= 98


def test_the_published_weights_can_be_fine_tuned(tmp_path: Path) -> None:
    """On scikit-learn's digits, with a readout that starts anew, they learn in an epoch what takes others several."""
    succeed("mnist_lenet.py", "-d", "digits", "--resume", WEIGHTS, "--new-readout", "--max-iters", 45, "--lr", 0.02,
            "-c", tmp_path / "run", "--manualSeed", 1, "--gpu-id", -1)
    assert float((tmp_path / "run" / "log.txt").read_text().split()[-4]) > 90
