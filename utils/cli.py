"""The command line of the training scripts: one definition of every flag, which each script fills with its defaults.

A value is settled in this order, the later the stronger: the script's defaults, its defaults for the chosen data set,
the arguments stored in the checkpoint of ``--resume``, the flags on the command line.
"""
import argparse
import math
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from utils import distributed

SCRIPT_NAME = Path(sys.argv[0]).stem


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the line breaks of the script's manual, and show every default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, "", argparse.SUPPRESS) or action.default is False
        return action.help if silent else super()._get_help_string(action)


def build_parser(manual: str, *, datasets: tuple[str, ...], engines: tuple[str, ...],
                 precisions: tuple[str, ...], events: bool = False) -> argparse.ArgumentParser:
    """All flags, without defaults of an experiment.

    Args:
        manual: shown above the flags; the script's docstring.
        datasets: names that ``--dataset`` takes; engines, precisions: those that ``--engine`` and ``--precision`` take.
        events: add the flags of event recordings.
    """
    parser = argparse.ArgumentParser(description=manual, formatter_class=Help)

    def add(group: argparse._ArgumentGroup, *names: str, **settings: Any) -> None:
        """Add a flag under both spellings, ``--time_step`` and ``--time-step``."""
        settings.setdefault("help", " ")
        spellings = [s for name in names for s in dict.fromkeys((name, _other_spelling(name)))]
        group.add_argument(*spellings, dest=_destination(names), **settings)

    data = parser.add_argument_group("data")
    add(data, "-d", "--dataset", choices=datasets, help="which data to train on")
    add(data, "--path", default="./data/raw", help="folder of the data; downloads go there")
    add(data, "-j", "--workers", type=int, default=4, help="processes that load data, 0 for none")
    add(data, "--test-limit", type=int, metavar="N", help="evaluate on the first N test samples only")
    if events:
        add(data, "--data-len", type=int, help="frames that a recording is split into")
        add(data, "--frames", choices=("reference", "clean"), help="frame transform: as published, or the exact resize")

    network = parser.add_argument_group("spiking network")
    add(network, "-t", "--time_step", type=int, help="steps of the forward simulation")
    add(network, "-tb", "--time_step_back", type=int, help="steps of the backward simulation")
    add(network, "--vth", type=float, default=1.0, help="threshold of forward neurons")
    add(network, "--vth_back", type=float, default=0.5, help="threshold of backward neurons; 0 means as --vth")
    add(network, "--u_rest", type=float, help="reset potential of forward neurons; -vth unless given")
    add(network, "--u_rest_back", type=float, help="reset potential of backward neurons; -vth_back unless given")
    add(network, "--leaky", type=float, default=1.0, help="1 for IF neurons, a leak in (0, 1) for LIF")
    add(network, "--drop", "--dropout", type=float, help="dropout probability")
    add(network, "--engine", choices=engines, default="auto", help="what simulates; auto picks by device")
    add(network, "--precision", choices=precisions, default="tf32", help="of products in the engine for GPUs")

    optimisation = parser.add_argument_group("optimisation")
    add(optimisation, "--epochs", type=int, help="passes over the training data")
    add(optimisation, "--start-epoch", type=int, help="restart at this epoch (from 0) instead of where a run stopped")
    add(optimisation, "--max-iters", type=int, metavar="N", help="stop after N iterations in all, evaluate, save")
    add(optimisation, "--train-batch", type=int, help="images in a training batch")
    add(optimisation, "--test-batch", type=int, help="images in a test batch")
    add(optimisation, "--accumulate", type=int, default=1, metavar="K",
        help="take a batch in K parts, for networks that do not fit: less memory, the same gradients")
    add(optimisation, "--optimizer", choices=("SGD", "Adam"), default="SGD", help="optimisation method")
    add(optimisation, "--lr", "--learning-rate", type=float, help="learning rate")
    add(optimisation, "--warmup", type=int, help="iterations over which the learning rate grows linearly")
    add(optimisation, "--schedule", type=int, nargs="*", help="epochs at which the learning rate falls")
    add(optimisation, "--gamma", type=float, help="factor by which it falls there")
    add(optimisation, "--momentum", type=float, default=0.9, help="momentum of SGD")
    add(optimisation, "--weight-decay", "--wd", type=float, default=5e-4, help="weight decay, not scaled")
    add(optimisation, "--scale_factor", type=float,
        help="the loss is multiplied and the learning rate divided by this: it drives the spiking backward network")

    run = parser.add_argument_group("run")
    add(run, "-c", "--checkpoint", help="write to checkpoints/NAME, or to a path with a separator as it is "
                                        "(default: SCRIPT-DATASET)", default=argparse.SUPPRESS)
    add(run, "--resume", metavar="FILE", default="",
        help="go on from this checkpoint, in its folder; 'auto' takes the newest good one of the run's folder, if any")
    add(run, "--override", action="store_true", help="resume although the flags given make it another experiment")
    add(run, "--save-every", type=int, metavar="N", help="write a checkpoint every N iterations too")
    add(run, "-e", "--evaluate", action="store_true", help="only evaluate the checkpoint of --resume")
    add(run, "--manualSeed", type=int, help="random seed; drawn and printed unless given")
    add(run, "--gpu-id", default="0", help="number of the GPU; several, 0,1, start a process for each; -1 for the CPU")
    add(run, "--deterministic", action="store_true", help="same bits in every run on a GPU too, at some cost")
    add(run, "--dry-run", action="store_true", help="print the configuration, check data and device, exit")
    return parser


# Arguments that say what this invocation does, not what the run is: never taken from a checkpoint.
PER_INVOCATION = ("resume", "override", "evaluate", "dry_run", "gpu_id", "start_epoch", "max_iters", "test_limit",
                  "checkpoint")
# Arguments without which a run is another experiment: a resumed run does not change them unless --override is given.
EXPERIMENT = ("dataset", "data_len", "frames", "time_step", "time_step_back", "vth", "vth_back", "u_rest",
              "u_rest_back", "leaky", "drop", "train_batch", "scale_factor", "optimizer", "manualSeed")


def parse(manual: str, *, defaults: Mapping[str, Any], dataset_defaults: Mapping[str, Mapping[str, Any]],
          engines: tuple[str, ...], precisions: tuple[str, ...], find_checkpoint: Callable[[Path], Path | None],
          stored_arguments: Callable[[str], Mapping[str, Any]], argv: list[str] | None = None) -> argparse.Namespace:
    """Settle every argument of a run.

    Args:
        manual: the script's docstring; defaults: of the script, by destination (``train_batch``).
        dataset_defaults: what differs for a data set, which also names the data sets that there are.
        engines, precisions: names that ``--engine`` and ``--precision`` take.
        find_checkpoint: finds the file that ``--resume auto`` means in a folder, or None.
        stored_arguments: reads the arguments from a checkpoint file.
        argv: the command line; the process's own unless given.

    Returns:
        The arguments, with ``usual_drive``, the experiment's own ``scale_factor / train_batch``, and ``changes``,
        sentences on stored arguments that the command line changes.

    Raises:
        ValueError: an argument is out of its range. Misspelt flags end the program as argparse does, with status 2.
    """
    parser = build_parser(manual, datasets=tuple(dataset_defaults), engines=engines, precisions=precisions,
                          events="data_len" in defaults)
    parser.set_defaults(**defaults)
    parser.set_defaults(**dataset_defaults.get(_dataset(argv) or defaults["dataset"], {}))
    given = _given(parser, argv)
    args = parser.parse_args(argv)
    folder = _folder(args)
    resume = str(find_checkpoint(folder) or "") if args.resume == "auto" else args.resume
    stored = _kept(parser, stored_arguments(resume), resume) if resume else {}
    if stored:
        if "dataset" not in given and stored.get("dataset") in dataset_defaults:
            parser.set_defaults(**dataset_defaults[stored["dataset"]])
        parser.set_defaults(**stored)
        args = parser.parse_args(argv)
    usual = {**defaults, **dataset_defaults[args.dataset]}
    args.usual_drive = usual["scale_factor"] / usual["train_batch"]
    args.resume, args.checkpoint = resume, str(folder)
    changed = {name: stored[name] for name in sorted(given & stored.keys()) if stored[name] != getattr(args, name)}
    args.changes = [f"{_flag(name)} was {_show(value)} and is now {_show(getattr(args, name))}"
                    for name, value in changed.items()]
    if args.manualSeed is None:
        args.manualSeed = secrets.randbelow(2**31)
    validate(args)
    another = [_flag(name) for name in changed if name in EXPERIMENT]
    if another and not (args.override or args.evaluate):
        raise ValueError(f"with another {' and '.join(another)} this would not be the experiment that {resume} is part "
                         f"of ({'; '.join(args.changes)}): leave the flag out, or add --override to go on all the same")
    return args


def validate(args: argparse.Namespace) -> None:
    """Refuse arguments that are out of range, in words that name the flag.

    Raises:
        ValueError: as said.
    """
    def require(condition: bool, sentence: str) -> None:
        if not condition:
            raise ValueError(sentence)

    for name in ("time_step", "time_step_back", "train_batch", "test_batch", "epochs", "max_iters", "test_limit",
                 "save_every", "accumulate", "data_len"):
        value = getattr(args, name, None)
        require(value is None or value >= 1, f"{_flag(name)} must be at least 1, not {value}")
    for name in ("workers", "warmup", "start_epoch"):
        value = getattr(args, name)
        require(value is None or value >= 0, f"{_flag(name)} must not be negative, but is {value}")
    for name in ("vth", "lr", "scale_factor", "gamma"):
        value = getattr(args, name)
        require(0 < value < math.inf, f"{_flag(name)} must be a positive number, not {value}")
    for name in ("momentum", "weight_decay"):
        value = getattr(args, name)
        require(0 <= value < math.inf, f"{_flag(name)} must be a number that is not negative, not {value}")
    require(args.vth_back >= 0, f"--vth_back must be positive, or 0 for the value of --vth, not {args.vth_back}")
    require(0 < args.leaky <= 1, f"--leaky must be 1 (IF) or lie in (0, 1) (LIF), not {args.leaky}")
    require(0 <= args.drop < 1, f"--drop must lie in [0, 1), not {args.drop}")
    vth_back = args.vth_back or args.vth
    for name, reset, threshold in (("u_rest", args.u_rest, args.vth), ("u_rest_back", args.u_rest_back, vth_back)):
        require(reset is None or reset < threshold,
                f"{_flag(name)} ({reset}) must be below the threshold ({threshold}): a spike lowers the potential")
    require(args.schedule == sorted(set(args.schedule)) and all(epoch > 0 for epoch in args.schedule),
            f"--schedule must list increasing epochs, not {' '.join(map(str, args.schedule))}")
    data_len = getattr(args, "data_len", None)
    require(data_len is None or args.time_step <= data_len,
            f"--time_step ({args.time_step}) must not exceed --data-len ({data_len}), the frames that there are")
    require(args.resume or not args.evaluate, "--evaluate needs a checkpoint to evaluate: name it with --resume FILE")
    require(args.manualSeed is None or 0 <= args.manualSeed < 2**63, "--manualSeed must lie between 0 and 2^63 - 1")


def exit_on_mistake(main: Callable[[], None]) -> None:
    """Run a script's ``main``; a user's mistake ends the process with one sentence and status 1, not a traceback."""
    try:
        main()
    except (ValueError, OSError) as error:
        message = str(error).strip()
        if message.startswith("Caught "):  # by a worker of a data loader, which wraps its traceback around it
            message = message.splitlines()[-1].partition(": ")[2]
        _exit(message)
    except RuntimeError as error:
        if distributed.lost_another(error):
            _exit("another process of this job ended, so this one cannot go on: the job's last checkpoint is whole, "
                  "resume from it (--resume auto)")
        if not str(error).startswith("DataLoader worker"):
            raise
        _exit(f"a process that loads data died ({error}): see to its memory, or use -j 0")
    except KeyboardInterrupt:
        sys.exit(130)


def _exit(message: str) -> NoReturn:
    """End the process with status 1 and one sentence, which of several processes the first one says."""
    if os.environ.get("RANK", "0") != "0":
        sys.exit(1)
    sys.exit(f"{SCRIPT_NAME}: error: {message}")


def _given(parser: argparse.ArgumentParser, argv: list[str] | None) -> frozenset[str]:
    """Names of the arguments that are on the command line."""
    probe = argparse.Namespace(**{action.dest: _MISSING for action in parser._actions})
    return frozenset(name for name, value in vars(parser.parse_args(argv, probe)).items() if value is not _MISSING)


_MISSING = object()


def _dataset(argv: list[str] | None) -> str | None:
    """The value of ``--dataset`` alone, which the defaults of other flags, and so the help, depend on."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-d", "--dataset")
    return parser.parse_known_args(argv)[0].dataset


def _kept(parser: argparse.ArgumentParser, stored: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The arguments of a checkpoint that count in this invocation.

    Raises:
        ValueError: one has a value that no command line gives.
    """
    kept = {}
    for action in parser._actions:
        name = action.dest
        if name not in stored or name in PER_INVOCATION:
            continue
        value, numbers = stored[name], {int: int, float: (int, float)}.get(action.type, str)
        if action.nargs == "*":
            fits = isinstance(value, list) and all(isinstance(item, int) for item in value)
        else:
            fits = value is None or isinstance(value, bool if action.const is True else numbers)
        if not fits or (action.choices and value not in action.choices):
            raise ValueError(f"{path} holds {value!r} for {_flag(name)}, which is no value of it in this script: "
                             f"resume with the script that wrote the file")
        kept[name] = value
    return kept


def _show(value: Any) -> str:
    """A value as it reads on a command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _folder(args: argparse.Namespace) -> Path:
    """Where the run writes: the folder of the file of ``--resume``, or what ``--checkpoint`` names."""
    if args.resume not in ("", "auto"):
        return Path(args.resume).parent
    name = getattr(args, "checkpoint", f"{SCRIPT_NAME}-{args.dataset}")
    return Path(name) if Path(name).name != name else Path("checkpoints") / name


def _other_spelling(name: str) -> str:
    """``--time-step`` for ``--time_step`` and the other way round."""
    if not name.startswith("--"):
        return name
    body = name[2:]
    return "--" + (body.replace("_", "-") if "_" in body else body.replace("-", "_"))


def _destination(names: tuple[str, ...]) -> str:
    """The attribute of a flag: its first long name with underscores."""
    return next(name for name in names if name.startswith("--"))[2:].replace("-", "_")


def _flag(name: str) -> str:
    """The published spelling of an argument, for messages."""
    underscored = ("time_step", "time_step_back", "vth_back", "u_rest", "u_rest_back", "scale_factor")
    return "--" + (name if name in underscored else name.replace("_", "-"))
