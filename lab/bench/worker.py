"""Runs of scripts one after another in one process, so that start-up does not dominate short ones.

`lab.bench.processes` starts it as `python -m lab.bench.worker` with a JSON list of command lines on
its input; it answers with a line `[exit code, last words]` for each, as soon as that run has ended.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import runpy
import sys
import traceback

from lab.bench.sweeps import ROOT


def make(words: list[str]) -> tuple[int, str]:
    """Does what `python <words>` does; gives the exit code and the last line of the errors."""
    path = str(ROOT / words[0])
    sys.argv = [path, *words[1:]]  # which the run keeps as its command
    errors, code = io.StringIO(), 0
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except KeyboardInterrupt:
            code = 130
        except Exception:
            traceback.print_exc()
            code = 1
    gc.collect()  # the run's tensors, before the next makes its own
    return code, (errors.getvalue().strip().splitlines() or [""])[-1]


def main() -> int:
    """Makes all runs, until one is stopped by a signal; returns its exit code, else 0."""
    sys.path[0] = str(ROOT)  # as for a script that is started from there
    for words in json.load(sys.stdin):
        code, last = make(words)
        print(json.dumps([code, last]), flush=True)
        if code >= 128:
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
