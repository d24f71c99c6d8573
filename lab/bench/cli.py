"""How a script begins and ends: the processor's settings, exit codes, a line for an error."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from lab.bench.errors import Interrupted, TrainingError, UserError


def script(main: Callable[[list[str] | None], None]) -> Callable[..., int]:
    """Decorates a script's `main(argv)`, so that it returns the exit code.

    0 when it went through, 1 when training failed, 2 for bad input, 130 after Ctrl-C, and 141, as a
    shell has it, when what reads the output has seen enough (`… | head`).

    Denormal numbers count as zero on a CPU from here on. A network that has memorised is full of
    them, in what remains of its gradients, and a CPU takes many times longer for each.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        torch.set_flush_denormal(True)  # before other threads begin, which take it over
        # On CUDA the same command gives the same numbers, and float32 means float32.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        try:
            main(argv)
        except (UserError, TrainingError) as error:
            print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
            return error.exit_code
        except Interrupted as stop:
            print(f"{Path(sys.argv[0]).name}: {stop}", file=sys.stderr)
            return stop.exit_code
        except BrokenPipeError:
            # Python would complain once more when it flushes the output at its exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except KeyboardInterrupt:
            print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
            return 130
        return 0

    return wrapped
