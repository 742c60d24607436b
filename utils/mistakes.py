"""What ends a script: a user's mistake in one sentence, a fault of the code with its traceback."""
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from modules.engines import EngineError, out_of_memory
from utils import distributed
from utils.cli import script_name
from utils.distributed import World
from utils.errors import UserError


@contextmanager
def in_a_sentence(world: World) -> Iterator[None]:
    """Context in which a user's mistake ends the process with a sentence and status 1; one of ``world`` says it."""
    try:
        yield
    except (UserError, EngineError) as error:
        # A worker of a data loader puts its traceback into the message.
        _exit(re.sub(rf"^Caught .*{UserError.__name__}: ", "", str(error).strip(), flags=re.DOTALL), world)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            _exit(f"out of memory ({str(error).splitlines()[0] if str(error) else 'of this machine'}): take a smaller "
                  "--train-batch, or its parts one by one with --accumulate, which changes no result; on a GPU "
                  "--precision bf16 takes less too", world)
        if distributed.lost_another(error):
            _exit("another process of this job ended, so this one cannot go on: the job's last checkpoint is whole, "
                  "resume from it (--resume auto)", world)
        if str(error).startswith("DataLoader worker"):
            _exit(f"a process that loads data died ({error}): see to its memory, or use -j 0", world)
        raise
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def about(*given: str | Path) -> Iterator[None]:
    """Context in which an OSError on a file or folder that the user gave, or on one below, becomes a UserError."""
    try:
        yield
    except OSError as error:
        file = error.filename and Path(os.fsdecode(error.filename))
        if not file or not any(file.resolve().is_relative_to(Path(place).resolve()) for place in given):
            raise
        raise UserError(f"{file} cannot be used ({error.strerror}): see to it, or name another") from error


def _exit(message: str, world: World) -> NoReturn:
    """End the process with status 1 and one sentence."""
    who = "" if world.leads else f"process {world.rank} of {world.size}: "
    sentence = f"{script_name()}: error: {who}{message}"
    if threading.current_thread() is not threading.main_thread():  # where nobody hears what a SystemExit says
        print(sentence, file=sys.stderr, flush=True)
    sys.exit(sentence if world.says(message) else 1)
