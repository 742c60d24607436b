"""The command line of an experiment: the flags that all share, and what settles the value of each.

A value is settled in this order, the later the stronger: the flag's own default, the script's defaults, its defaults
for the chosen data set, the arguments stored in the checkpoint of ``--resume``, the flags on the command line.
"""
import argparse
import math
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from utils import checkpoint
from utils.checkpoint import Stored
from utils.errors import UserError

FROM_SCRIPT = object()  # the default of a flag whose value a script has to name among its defaults

# What a value must be: the end of "--flag must ... VALUE", and whether it is.
Rule = tuple[str, Callable[[Any], bool]]
AT_LEAST_1: Rule = "be at least 1 and below 2^31, not", lambda value: 1 <= value < 2**31
AT_LEAST_0: Rule = "not be negative, nor above 2^31, but is", lambda value: 0 <= value < 2**31
# Of floats, what float32 holds: an optimizer takes no others.
POSITIVE: Rule = "be a positive number in float32, not", lambda value: 1e-38 < value < 3e38
FINITE: Rule = "be a positive number, not", lambda value: 0 < value < math.inf
NOT_NEGATIVE: Rule = "be a number that is not negative, in float32, not", lambda value: 0 <= value < 3e38
INCREASING: Rule = "list increasing epochs, not", lambda value: value == sorted({n for n in value if n > 0})
SEED: Rule = "lie between 0 and 2^63 - 1, not", lambda value: 0 <= value < 2**63

# With what a flag counts: the end of "--flag counts only WORDS", and whether it does among all arguments.
Condition = tuple[str, Callable[[argparse.Namespace], bool]]


class Arguments(argparse.Namespace):
    """What the user said, by the destination of each flag; nothing changes it. What a run derives is in ``Run``."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)

    def __setattr__(self, name: str, *_: Any) -> None:
        raise AttributeError(f"args.{name} cannot be set: args is what the user said; keep what follows from it apart")

    __delattr__ = __setattr__


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the line breaks of the script's manual, and show every default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, "", argparse.SUPPRESS) or action.default is False
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ``argparse.ArgumentParser`` whose flags have two spellings each and say what they are to a run."""

    def __init__(self, manual: str, **settings: Any) -> None:
        super().__init__(description=manual, formatter_class=_Help, **settings)
        # Functions of the settled arguments that raise ValueError with a sentence for the user where values make no
        # sense together; append your own.
        self.checks: list[Callable[[argparse.Namespace], None]] = []
        self.shared: frozenset[str] = frozenset()  # destinations of the flags that every experiment has

    def add_argument(self, *names: str, group: argparse._ArgumentGroup | None = None, experiment: bool = False,
                     stored: bool = True, must: Rule | None = None, counts: Condition | None = None,
                     **settings: Any) -> argparse.Action:
        """Add a flag as argparse does, under both spellings, ``--time_step`` and ``--time-step``.

        Args:
            names: the flag's names, the short one first; group: in which the help lists it.
            experiment: another value would make a resumed run another experiment, so it needs ``--override``.
            stored: a run that goes on from a checkpoint takes the value from there; else it is for one invocation.
            must: the range of the value, if it has one.
            counts: what it counts with, if not always; a run notes where it does not.
            settings: of argparse. A value has to be plain (numbers, texts, lists), as checkpoints hold nothing else.
        """
        settings.setdefault("help", " ")  # for the formatter to put the default behind
        spellings = [spelling for name in names for spelling in _spellings(name)]
        action = argparse._ActionsContainer.add_argument(group or self, *spellings, **settings)
        action.experiment, action.stored, action.must, action.counts = experiment, stored, must, counts
        return action

    def add_argument_group(self, *arguments: Any, **settings: Any) -> argparse._ArgumentGroup:
        """A group of flags under a title of its own in the help, which adds flags as the parser does."""
        return self._adding(super().add_argument_group(*arguments, **settings))

    def add_mutually_exclusive_group(self, **settings: Any) -> argparse._MutuallyExclusiveGroup:
        """A group of flags of which a command line gives one at most, which displaces a stored one of another."""
        return self._adding(super().add_mutually_exclusive_group(**settings))

    def _adding(self, group: argparse._ArgumentGroup) -> Any:
        """A group, and exclusive groups within it, that add flags as the parser does."""
        group.add_argument, exclusive = partial(self.add_argument, group=group), group.add_mutually_exclusive_group
        group.add_mutually_exclusive_group = lambda **settings: self._adding(exclusive(**settings))
        return group

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """The flags by destination, without ``--help``."""
        return {action.dest: action for action in self._actions if not isinstance(action, argparse._HelpAction)}

    def rivals(self, names: Iterable[str]) -> set[str]:
        """The flags that some exclude, by destination."""
        groups = [{flag.dest for flag in group._group_actions} for group in self._mutually_exclusive_groups]
        return set().union(*(group for group in groups if group.intersection(names))).difference(names)

    def spelling(self, name: str) -> str:
        """How messages call the flag of a destination: by the first long name that it was given."""
        spellings = [*self.flags[name].option_strings, name]
        return next((s for s in spellings if s.startswith("--")), spellings[0])


def path(text: str) -> str:
    """Type of a flag that takes a file or folder; ``~`` is the user's home."""
    if not text:  # as of a variable of a shell that is not set
        raise argparse.ArgumentTypeError("names no file or folder: it is empty")
    if (expanded := os.path.expanduser(text)).startswith("~"):
        raise argparse.ArgumentTypeError(f"{text} is in the home of a user that there is not (a name with ~ is "
                                         f"./{text})")
    return expanded


def add_shared_flags(parser: Parser, datasets: Sequence[str]) -> None:
    """The flags that every experiment has; ``datasets`` are the names that ``--dataset`` takes."""
    def group(title: str) -> tuple[Callable, Callable]:
        """What adds to a group flags of a run, and flags that count for one invocation."""
        add = parser.add_argument_group(title).add_argument
        return add, partial(add, stored=False)

    add, once = group("data")
    add("-d", "--dataset", choices=datasets, default=FROM_SCRIPT, experiment=True, help="which data to train on")
    add("--path", type=path, default="./data/raw", help="folder of the data; downloads go there")
    add("-j", "--workers", type=int, must=AT_LEAST_0, default=4, help="processes that load data, 0 for none")
    once("--test-limit", type=int, must=AT_LEAST_1, metavar="N", help="evaluate on N test samples only, evenly spread",
         counts=("without --export", lambda args: not args.export))

    add, once = group("optimisation")
    add("--epochs", type=int, must=AT_LEAST_1, default=FROM_SCRIPT, help="passes over the training data")
    once("--start-epoch", type=int, must=AT_LEAST_0, help="begin at this epoch (from 0), not where a run stopped")
    once("--max-iters", type=int, must=AT_LEAST_1, metavar="N", help="stop after N iterations in all, evaluate, save",
         counts=("in training", lambda args: not (args.evaluate or args.export)))
    add("--train-batch", type=int, must=AT_LEAST_1, default=FROM_SCRIPT, experiment=True,
        help="samples in a training batch")
    add("--test-batch", type=int, must=AT_LEAST_1, default=FROM_SCRIPT, help="samples in a test batch")
    add("--accumulate", type=int, must=AT_LEAST_1, default=1, metavar="K",
        help="take a batch in K parts, for networks that do not fit: less memory, the same gradients")
    add("--optimizer", choices=("SGD", "Adam"), default="SGD", experiment=True,
        help="optimisation method; Adam does not see the gradient's scale, so for it --lr should be larger by that")
    add("--lr", "--learning-rate", type=float, must=POSITIVE, default=FROM_SCRIPT,
        help="learning rate, before it is divided")
    add("--warmup", type=int, must=AT_LEAST_0, default=0, help="iterations over which the learning rate grows linearly")
    add("--schedule", type=int, nargs="*", must=INCREASING, default=[], help="epochs at which the learning rate falls")
    add("--gamma", type=float, must=POSITIVE, default=0.1, help="factor by which it falls there",
        counts=("with --schedule", lambda args: bool(args.schedule)))
    add("--momentum", type=float, must=NOT_NEGATIVE, default=0.9, help="momentum of SGD",
        counts=("with --optimizer SGD", lambda args: args.optimizer == "SGD"))
    add("--weight-decay", "--wd", type=float, must=NOT_NEGATIVE, default=5e-4, help="weight decay, not scaled")
    add("--scale_factor", type=float, must=FINITE, default=FROM_SCRIPT, experiment=True,
        help="the loss is multiplied and the learning rate divided by this: it drives the spiking backward network")

    add, once = group("run")
    once("-c", "--checkpoint", type=path,
         help="write to checkpoints/NAME, or to a path with a separator as it is (default: the folder of --resume, or "
              "SCRIPT-DATASET)")
    once("--resume", type=path, metavar="FILE",
         help="go on from this checkpoint; 'auto' takes the newest good one of the run's folder, if any")
    once("--new-readout", action="store_true",
         help="begin a new run with the network of --resume and a readout that starts anew: to fine-tune, also on "
              "another number of classes")
    once("--export", type=path, metavar="FILE",
         help="only write the network of --resume to FILE, without the optimizer's state")
    once("--override", action="store_true", help="resume although the flags given make it another experiment")
    add("--save-every", type=int, must=AT_LEAST_1, metavar="N", help="write a checkpoint every N iterations too")
    add("--log-every", type=int, must=AT_LEAST_0, default=10, metavar="N",
        help="write a row of metrics every N iterations; 0 for none")
    once("-e", "--evaluate", action="store_true", help="only evaluate the checkpoint of --resume")
    add("--manualSeed", type=int, must=SEED, experiment=True, help="random seed; drawn and printed unless given")
    once("--gpu-id", default="0", help="number of the GPU; several, 0,1, start a process for each; -1 for the CPU")
    add("--deterministic", action="store_true", help="same bits in every run on a GPU too, at some cost")
    once("--report", action="store_true",
         help="write what the network does to report/ in the run's folder: with --evaluate, or when training has ended")
    once("--report-samples", type=int, must=AT_LEAST_1, default=32, metavar="N",
         help="test samples that the report is made from, evenly spread",
         counts=("with --report", lambda args: args.report))
    once("--dry-run", action="store_true", help="print the configuration, check data and device, exit")
    parser.shared = frozenset(parser.flags)


@dataclass(frozen=True)
class Invocation:
    """A command line, and what follows from it before anything runs."""

    args: Arguments
    folder: Path  # where the run writes
    seed: int  # the user's, or one that was drawn
    usual_drive: float  # the experiment's own scale_factor / train_batch
    stored: Stored | None = field(default=None, repr=False)  # the checkpoint to go on from
    # Sentences on stored arguments that the command line or the script changes, and on flags that change nothing.
    remarks: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of the script, for the data set


def parse(make_parser: Callable[..., Parser], *, defaults: Mapping[str, Any],
          dataset_defaults: Mapping[str, Mapping[str, Any]], argv: Sequence[str]) -> Invocation:
    """Settle every argument of a run.

    Args:
        make_parser: makes the parser, without ``--help`` if called with ``add_help=False``.
        defaults, dataset_defaults: of the script, see :class:`utils.experiment.Experiment`.
        argv: the command line; misspelt flags end the program as argparse does, with status 2.

    Raises:
        UserError: an argument is out of its range, or the checkpoint cannot be read.
        ValueError: the script's defaults name no flag, leave one out, or have no value of one.
    """
    bare = make_parser(add_help=False)  # with the flags' own defaults
    given = _given(make_parser(add_help=False), argv)

    def parser_for(dataset: str | None) -> Parser:
        parser = make_parser()
        for kind, own in (("defaults", defaults), (f"defaults for {dataset}", dataset_defaults.get(dataset, {}))):
            if unknown := own.keys() - parser.flags:
                raise ValueError(f"the script's {kind} name {', '.join(sorted(unknown))}, which is no flag")
            parser.set_defaults(**own)
        if absent := [name for name, flag in parser.flags.items() if flag.default is FROM_SCRIPT]:
            raise ValueError(f"the script's defaults name no {' and no '.join(absent)}")
        return parser

    dataset = given.get("dataset", defaults.get("dataset"))
    args = parser_for(dataset).parse_args(argv)
    folder = _folder(args)
    found = checkpoint.find(args.resume, folder)
    kept = _kept(bare, found) if found else {}
    if args.new_readout:  # another run, of which the file says what the network is, and no more
        kept = {name: value for name, value in kept.items() if name not in bare.shared}
    displaced = {name: kept.pop(name) for name in bare.rivals(given) & kept.keys()}
    parser = parser_for({"dataset": dataset, **kept, **given}["dataset"])
    parsed = vars(parser.parse_args(argv))
    args = Arguments({**parsed, **{name: value for name, value in kept.items() if name not in given}})
    _check(parser, args, bare)

    before = {**kept, **displaced}
    changed = [name for name in sorted(before) if before[name] != getattr(args, name)]
    changes = [f"{parser.spelling(name)} was {_show(before[name])} and is now {_show(getattr(args, name))}"
               for name in changed]
    another = [parser.spelling(name) for name in changed if parser.flags[name].experiment]
    if another and not (args.override or args.evaluate or args.new_readout):
        raise UserError(f"with another {' and '.join(another)} this would not be the experiment that {found.path} is "
                        f"part of ({'; '.join(changes)}): leave the flag out, or add --override to go on all the same")
    if args.start_epoch is not None and (args.evaluate or args.export):
        raise UserError("--start-epoch is of training, so it goes with neither --evaluate nor --export")
    if args.start_epoch is not None and args.start_epoch >= args.epochs:
        raise UserError(f"--start-epoch {args.start_epoch} is not among the {args.epochs} of --epochs, which count "
                        "from 0: name an earlier one, or more epochs")
    for name in ("evaluate", "export", "new_readout"):
        if getattr(args, name) and not found:
            raise UserError(f"{parser.spelling(name)} needs a checkpoint: name it with --resume FILE")
    if args.new_readout and (args.evaluate or args.export):
        raise UserError("--new-readout begins a run, so it goes with neither --evaluate nor --export")
    if args.new_readout and args.resume == "auto":
        raise UserError("--new-readout needs the name of a file: --resume FILE")
    if args.export and (args.evaluate or args.report or args.dry_run):
        raise UserError("--export only writes a file, so it goes with none of --evaluate, --report and --dry-run")
    usual = {**defaults, **dataset_defaults[args.dataset]}
    former = found.contents.get("defaults") if found else None
    if isinstance(former, dict):  # whoever edited a default may expect it to count
        edited = [name for name in sorted(usual.keys() & kept.keys() - given.keys())
                  if _show(former.get(name)) != _show(usual[name]) and kept[name] != usual[name]]
        changes += [f"the script's default of {parser.spelling(name)} is now {_show(usual[name])}, but the "
                    f"checkpoint's {_show(kept[name])} counts" for name in edited]
    conditions = [(name, *parser.flags[name].counts) for name in sorted(given) if parser.flags[name].counts]
    idle = [f"{parser.spelling(name)} counts only {words}" for name, words, holds in conditions if not holds(args)]
    return Invocation(args=args, folder=folder, stored=found,
                      remarks=(*(f"changed: {change}" for change in changes), *(f"note: {flag}" for flag in idle)),
                      defaults={name: value for name, value in usual.items() if _plain(value)},
                      seed=secrets.randbelow(2**31) if args.manualSeed is None else args.manualSeed,
                      usual_drive=usual["scale_factor"] / usual["train_batch"])


def script_name() -> str:
    """Name of the script that runs, without its suffix."""
    return Path(sys.argv[0]).stem


def _spellings(name: str) -> tuple[str, ...]:
    """``--time_step`` and ``--time-step``, the given one first."""
    if not name.startswith("--"):
        return (name,)
    old, new = "_-" if "_" in name else "-_"
    return tuple(dict.fromkeys((name, "--" + name[2:].replace(old, new))))


def _given(parser: Parser, argv: Sequence[str]) -> dict[str, Any]:
    """The values that are on the command line, by destination; the parser is of no other use then."""
    for flag in parser._actions:
        flag.default = argparse.SUPPRESS
    parser._defaults.clear()
    return vars(parser.parse_known_args(argv)[0])


def _folder(args: argparse.Namespace) -> Path:
    """Where the run writes: what ``--checkpoint`` names, or else the folder of the file of ``--resume``."""
    if args.resume not in (None, "auto") and args.checkpoint is None and not args.new_readout:
        folder, shared = checkpoint.itself(args.resume).parent, ["checkpoints"]
        said = f"{folder}, the folder of --resume,"
        writes = args.report or not (args.evaluate or args.export)
    else:
        name = f"{script_name()}-{args.dataset}" if args.checkpoint is None else args.checkpoint
        folder = Path(name) if Path(name).name != name else Path("checkpoints") / name
        shared, said, writes = [".", "..", "/", "checkpoints"], f"-c {name}", True
    if writes and os.path.realpath(folder) in map(os.path.realpath, shared):
        raise UserError(f"{said} is no folder of one run's own: name one within it with -c")
    return folder


def _kept(parser: Parser, found: Stored) -> dict[str, Any]:
    """The arguments of a checkpoint that count in this invocation; UserError, if no command line gives such a value."""
    flags = {name: flag for name, flag in parser.flags.items() if flag.stored and name in found.arguments}
    for name, flag in flags.items():
        if not _fits(flag, found.arguments[name]):
            raise UserError(f"{found.path} holds {found.arguments[name]!r} for {parser.spelling(name)}, which is no "
                            "value of it in this script: resume with the script that wrote the file")
    return {name: found.arguments[name] for name in flags}


def _fits(flag: argparse.Action, value: Any) -> bool:
    """Whether a command line could give the flag, with its own default, this value, or leave it at None. What a
    script's own function makes of a text, and constants of its own, may be anything."""
    if value is None:
        return flag.default is None
    if flag.nargs == 0:
        return isinstance(value, int) or not isinstance(flag.const, (bool, type(None)))
    several = flag.nargs not in (None, "?") or isinstance(flag, argparse._AppendAction)
    kind = {int: int, float: (int, float), None: (str, list), path: str}.get(flag.type)
    return kind is None or isinstance(value, list) == several and all(
        isinstance(item, kind) and not isinstance(item, bool) and (not flag.choices or item in flag.choices)
        for item in (value if several else [value]))


def _check(parser: Parser, args: argparse.Namespace, bare: Parser) -> None:
    """Refuse values out of range, by UserError; by ValueError and TypeError, as faults of the script, values of another
    kind, None where the flag's own default in ``bare`` is another, and what no checkpoint could hold."""
    for name, value in vars(args).items():
        if name not in parser.flags:
            raise ValueError(f"the script gives '{name}' the value {value!r}, which is no flag")
        if not _plain(value):
            raise TypeError(f"{parser.spelling(name)} makes {value!r}, but a value of a flag has to be a number, a "
                            "text or a list of those, as it is stored in checkpoints")
        if not _fits(bare.flags[name], value):
            raise ValueError(f"the script's default of {parser.spelling(name)} is {value!r}, which could not stand on "
                             "a command line")
        if (must := parser.flags[name].must) and value is not None:
            words, holds = must
            if not holds(value):
                raise UserError(f"{parser.spelling(name)} must {words} {_show(value)}")
    if not (rate := args.lr / args.scale_factor) < 3e38:
        raise UserError(f"--lr / --scale_factor, the learning rate in effect, is {rate:g}, which float32 does not hold")
    for check in parser.checks:
        try:
            check(args)
        except ValueError as error:
            raise UserError(str(error)) from error


def _plain(value: Any) -> bool:
    return all(map(_plain, value)) if type(value) is list else type(value) in (type(None), bool, int, float, str)


def _show(value: Any) -> str:
    """A value as it reads on a command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
