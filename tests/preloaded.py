"""Scripts as processes that find their libraries imported: each is a fork of a process that has done nothing else.

A fork has signals, files and an end of its own, as any process has; it only is there three seconds sooner. What has to
begin with an interpreter (imports in their own order, a hash seed, variables that libraries read when imported, limits,
sessions) needs ``subprocess``.
"""
import atexit
import ctypes
import functools
import gc
import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
ONE_THREAD = dict.fromkeys((f"{kind}_NUM_THREADS" for kind in ("OMP", "OPENBLAS", "GOTO", "MKL")), "1")


class Popen(subprocess.Popen):
    """``subprocess.Popen`` of ``[python, SCRIPT or -m MODULE, ...]``, with ``cwd``, ``env`` and pipes of output."""

    def _execute_child(self, command: list[str], *rest: Any) -> None:  # private, the same from Python 3.11 to 3.13
        preparation, inherited, (cwd, env), pipes, session = rest[1], rest[3], rest[4:6], rest[9:15], rest[20]
        assert pipes[0] == -1 and pipes[3] != -1 and not (preparation or inherited or session), "needs subprocess.Popen"
        request = json.dumps({"command": command[1:], "cwd": str(cwd), "env": env}).encode()
        server, prctl = _server(), ctypes.CDLL(None).prctl
        if prctl(PR_SET_CHILD_SUBREAPER, 1):  # whose parent ends is a child of this process then
            raise OSError("this system has no subreapers")
        try:
            socket.send_fds(server, [len(request).to_bytes(4, "big")], [pipes[3], 2 if pipes[5] == -1 else pipes[5]])
            server.sendall(request)
            pid = int.from_bytes(server.recv(4, socket.MSG_WAITALL), "big")
            if not pid:
                raise ConnectionError("it ended, or could not fork")
        except OSError as error:
            server.close()
            _server.cache_clear()  # the next script starts another
            raise ChildProcessError("the process that forks scripts gave none; its words are in the output") from error
        finally:
            prctl(PR_SET_CHILD_SUBREAPER, 0)
        self.pid, self._child_created = pid, True
        self._close_pipe_fds(*pipes)


def run(command: list[str], *, cwd: str | Path, env: dict[str, str], timeout: float) -> subprocess.CompletedProcess:
    """``subprocess.run`` of such a command, with its output as text."""
    with Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            output = process.communicate(timeout=timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(command, process.returncode, *output)


@functools.cache
def _server() -> socket.socket:
    """Where the process that forks takes requests; it ends when this one does."""
    own, its = socket.socketpair()
    with its:
        process = subprocess.Popen([sys.executable, "-m", "tests.preloaded", str(its.fileno())],
                                   cwd=Path(__file__).parents[1], env=os.environ | ONE_THREAD,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[its.fileno()])
    own.settimeout(300)
    atexit.register(lambda: (own.close(), process.wait()))
    return own


def serve(requests: socket.socket) -> list[str]:
    """Fork for every request; return, in the fork, its command line."""
    import sklearn.datasets  # noqa: F401
    from numba.core.registry import cpu_target

    import benchmarks.speed  # noqa: F401
    import mnist_lenet  # noqa: F401
    from modules.engines.event import compiled
    from utils import figures
    compiled.load("kernels")
    compiled.load("chain")
    for context in (cpu_target.typing_context, cpu_target.target_context):
        context.refresh()  # what a first call of a compiled loop would do
    figures.new_figure(1, 1, width=1, height=1)
    assert len(os.listdir("/proc/self/task")) == 1, "an imported library started threads, which a fork would lack"
    gc.freeze()  # else a fork looks at, and so copies, every object when it ends, which takes it a second
    while True:
        size, files, *_ = socket.recv_fds(requests, 4, 2)
        if not size:
            sys.exit()
        request = json.loads(requests.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        between = os.fork()
        if between:
            os.waitpid(between, 0)
            for file in files:
                os.close(file)
            continue
        between = os.getpid()
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            requests.sendall(bytes(4))
            os._exit(1)
        while os.getppid() == between:
            pass
        requests.sendall(os.getpid().to_bytes(4, "big"))
        requests.close()
        for number, file in enumerate(files, start=1):
            os.dup2(file, number)
            os.close(file)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        return request["command"]


if __name__ == "__main__":
    try:
        sys.argv = serve(socket.socket(fileno=int(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit()
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if sys.argv[0] == "-m":
        sys.argv, sys.path[0] = sys.argv[1:], os.getcwd()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
