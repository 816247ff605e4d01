"""Whole small applications. What they need beyond the lessons is in `recipes/requirements.txt`."""

import argparse
import re
import sys
from types import TracebackType
from typing import NoReturn


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say in one line which package is missing; show any other error in full."""
    if isinstance(error, ModuleNotFoundError):
        missing = f"{error.name} is not installed: run `pip install -r recipes/requirements.txt`."
        sys.stderr.write(f"{missing}\n")
        raise SystemExit(1)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _explain


class Arguments(argparse.ArgumentParser):
    """A command line; a mistake in it prints one line, and the exit status is 2."""

    def error(self, message: str) -> NoReturn:
        """End the program without repeating an address, which may contain a secret."""
        sys.stderr.write(f"{re.sub('://[^ ]+', '://…', message)}; --help shows the options.\n")
        raise SystemExit(2)
