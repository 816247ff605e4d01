"""Whole small applications. What they need beyond the lessons is in `recipes/requirements.txt`."""

import sys
from types import TracebackType


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say in one line which package is missing; show any other error in full."""
    if isinstance(error, ModuleNotFoundError):
        missing = f"{error.name} is not installed: run `pip install -r recipes/requirements.txt`."
        sys.stderr.write(f"{missing}\n")
        raise SystemExit(1)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _explain
