"""Runs Python in forks of a process that has imported the libraries, but nothing of ours.

Importing them takes most of a lesson's time, and is the same in each of a hundred runs. The
first and second run of each lesson, and the runs without network, are new processes.
"""

import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("langfuse", "langfuse.experiment", "opentelemetry.exporter.otlp.proto.http.trace_exporter"),
    *("openai.types.responses", "openai.types.graders", "openai.lib.streaming.responses"),
    *("rich.console", "rich.progress", "rich.table", "uvicorn", "starlette.applications"),
)


class Forks:
    """Starts one such process, and asks it for a fork per run."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.one_at_a_time = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env={"PATH": os.environ["PATH"]},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()

    def run(
        self, command: list[str], env: dict[str, str], cwd: str, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Return what `subprocess.run` returns for `python COMMAND`."""
        asked = json.dumps({"command": command, "env": env, "cwd": cwd}).encode()
        with (
            self.one_at_a_time,
            tempfile.TemporaryFile("w+", encoding="utf-8") as out,
            tempfile.TemporaryFile("w+", encoding="utf-8") as err,
        ):
            self.ours.settimeout(seconds)
            socket.send_fds(self.ours, [asked], [out.fileno(), err.fileno()])
            status = int(self.ours.recv(10))
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(
                [sys.executable, *command], status, out.read(), err.read()
            )

    def stop(self) -> None:
        """End the process."""
        self.ours.close()
        self.process.wait(20)


def _wait_for_work(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each thing that is asked for; return in the fork with what it has to do."""
    while True:
        data, descriptors, *_ = socket.recv_fds(channel, 1_000_000, 2)
        if not data:
            return None
        child = os.fork()
        if not child:
            channel.close()
            for number, descriptor in enumerate(descriptors, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            work: dict[str, Any] = json.loads(data)
            return work
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())


def main() -> None:
    """Import, wait, and in a fork run what a new process would run."""
    for name in LIBRARIES:
        importlib.import_module(name)
    work = _wait_for_work(socket.socket(fileno=int(sys.argv[1])))
    if work is None:
        return
    os.environ.clear()
    os.environ.update(work["env"])
    os.chdir(work["cwd"])
    sys.path[1:1] = filter(None, [os.environ.get("PYTHONPATH")])
    first, *rest = work["command"]
    if first == "-m":
        sys.argv, sys.path[0] = rest, work["cwd"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
