"""How a script begins and ends: the processor's settings, exit codes, a line for an error."""

import contextlib
import functools
import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import torch

from lab.bench.errors import Interrupted, TrainingError, UserError, WriteError, reason
from lab.bench.memory import keep_freed_memory

CAPTURE = re.compile("(?i)captur")  # in what torch says of a CUDA graph that it cannot make
# What torch and numpy say, in errors of all kinds, of sizes that no memory holds or number counts.
TOO_LARGE = re.compile(
    "(?i)not enough memory|allocate memory|out of memory|bad_alloc|overflow|maximum allowed"
)


def script(main: Callable[[list[str] | None], None]) -> Callable[..., int]:
    """Decorates a script's `main(argv)`, so that it returns the exit code.

    0 when it went through, 1 when training failed or a file could not be written, 2 for bad input,
    sizes that no memory holds among it, 130 after Ctrl-C, and 141, as a shell has it, when what
    reads the output has seen enough (`… | head`).

    Denormal numbers count as zero on a CPU from here on. A network that has memorised may be full
    of them, in what remains of its gradients, and a CPU may take many times longer for each.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        for kind in (numpy.float32, numpy.float64):
            numpy.finfo(kind)  # of which NumPy 2.2 and older warn where denormals are zero
        torch.set_flush_denormal(True)  # before other threads begin, which take it over
        keep_freed_memory()
        # On CUDA the same command gives the same numbers, and float32 means float32.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        try:
            main(argv)
            sys.stdout.flush()  # here, where a full disk is an error with a line of its own
        except (UserError, TrainingError, WriteError) as error:
            return _ended(error, error.exit_code)
        except Interrupted as stop:
            print(f"{Path(sys.argv[0]).name}: {stop}", file=sys.stderr)
            return stop.exit_code
        except BrokenPipeError:
            _discard_output()
            return 141
        except OSError as error:
            if error.filename is None:
                _discard_output()
            return _ended(f"{error.filename or 'the output'}: {reason(error)}", 1)
        except Exception as error:
            if isinstance(error, RuntimeError) and CAPTURE.search(str(error)):
                why = str(error).splitlines()[0]
                return _ended(f"no CUDA graph of the update ({why}); --eager goes without one", 1)
            if not (isinstance(error, MemoryError | OverflowError) or TOO_LARGE.search(str(error))):
                raise
            return _ended(
                f"no memory or number is large enough for {_sizes(argv)} ({reason(error)})", 2
            )
        except KeyboardInterrupt:
            print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
            return 130
        return 0

    return wrapped


def _ended(error: object, code: int) -> int:
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _sizes(argv: list[str] | None) -> str:
    """The largest numbers that were given, `--p 1000000`, at most three."""
    given = sys.argv[1:] if argv is None else argv
    pairs = itertools.pairwise(part for word in given for part in word.split("=", 1))
    sizes = []
    for name, text in pairs:
        with contextlib.suppress(ValueError):  # no number
            sizes += [(abs(float(text)), f"{name} {text}")] if name.startswith("--") else []
    sizes = [size for size in sizes if size[0] > 1]
    return ", ".join(text for _, text in sorted(sizes, reverse=True)[:3]) or "the default sizes"


def _discard_output() -> None:
    """Else Python complains once more, when it flushes the output at its exit."""
    with contextlib.suppress(OSError):  # an output that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
