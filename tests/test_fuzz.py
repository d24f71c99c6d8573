"""Every option of every script with bad values: a line that names it, exit code 2, or a reason.

Slow, half an hour: `pytest -m slow tests/test_fuzz.py`. Values that are extreme but lawful train
one tiny step, and may end in a line as well.
"""

import contextlib
import dataclasses
import importlib
import io
import signal
from urllib.error import URLError

import pytest

from helpers import TINY, write_cifar
from lab.bench.takes import Takes

resource = pytest.importorskip("resource")  # not on Windows
MEMORY, SECONDS = 12 * 2**30, 120  # what a case may take

NUMBERS = ["", " ", "abc", "nan", "inf", "-inf", "1,5", "true", "-1", "1 2", "1 none", "9" * 400]
BAD = {
    int: [*NUMBERS, "1.5", "1e9", "0x10", "9" * 20, "9" * 5000],
    float: [*NUMBERS, "1e999", "0x1p3", "1/2", "-1e-300"],
    # Of a flag, which takes no value.
    bool: ["=true", "=false", "=1", "=0", "=", "=no", "true", "no", "0", "1"],
}
CHOICES = ["", " ", "nothing", "-1", "*", "é", "a\nb", "\udcff", "0.5", "a" * 300]
TEXT = {
    "name": ["", " ", "..", "a/b", "a:b", "a|b", "a?", 'a"', "<a>", "a\nb", "\udcff", "a" * 300],
    "device": ["", "gpu", "CPU", "cpu:7", "cuda:99", "cuda:-1", "mps:1", "meta", "a\nb", "cpu 1"],
    "out_dir": ["", "a\nb", "\udcff", "\x00", "/dev/null", "/dev/null/a", "/proc/none", "a b",
                "a" * 300, "config.yaml"],
    "data_dir": ["", "a\nb", "\udcff", "\x00", "a b"],
    "knobs": ["", "alpha", "alpha=", "=1", "alpha=a", "alpha=nan", "beta=1", "alpha=1 alpha=2",
              "a\nb=1", "alpha=1=2"],
}  # fmt: skip
EXTREME = {int: ["1000000000"], float: ["1e300", "1e-300"], bool: [], str: []}
# (option, value) -> why it is taken.
EXPLAINED = {
    ("alpha", "-1"): "a width to any power",
    ("alpha", "-1e-300"): "a width to any power",
}
CASES = [
    (script, f.name)
    for script in TINY
    for f in dataclasses.fields(importlib.import_module(script).Options)
]


class TooLong(BaseException):
    """Not an Exception, which a script could catch."""


@pytest.fixture
def bounded(monkeypatch, tmp_path):
    """A folder with images, no network, little memory and little time."""

    def no_network(*_, **__):
        raise URLError("no route")

    def too_long(*_):
        raise TooLong

    write_cifar(tmp_path / "data", 12)
    (tmp_path / "config.yaml").write_text("")
    monkeypatch.setattr("torchvision.datasets.CIFAR10", no_network)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limits[1]))
    before = signal.signal(signal.SIGALRM, too_long)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def ended(script, *words):
    """Exit code, what was said, and what was raised instead."""
    said, raised = io.StringIO(), None
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = importlib.import_module(script).main(list(words))
    except SystemExit as exit:
        code = exit.code
    except (Exception, TooLong) as error:
        code, raised = None, f"{type(error).__name__}: {str(error)[:300]}"
    signal.alarm(0)
    return code, said.getvalue(), raised


@pytest.mark.slow
@pytest.mark.parametrize(("script", "option"), CASES)
def test_bad_values_end_in_a_line(script, option, bounded):
    options = importlib.import_module(script).Options
    takes = Takes.of(options)[option]
    bad = TEXT[option] if option in TEXT else CHOICES if takes.choices else BAD[takes.kind]
    tiny = f"{TINY[script]} --device cpu"
    if script != "circuit_efficiency":
        tiny += " --steps 1"
    wrong = []
    # Of updates any number is lawful, and takes as long as it says.
    extreme = [] if takes.choices or option in ("steps", "epochs") else EXTREME[takes.kind]
    for number, value in enumerate([*bad, *extreme]):
        given = [f"--{option}", *value.split(" ")] if value.strip() else [f"--{option}", value]
        if takes.kind is bool:
            given = [f"--{option}{value}"] if value.startswith("=") else [f"--{option}", value]
        place = [] if option == "out_dir" else ["--out_dir", f"runs_{number}"]
        code, said, raised = ended(script, *tiny.split(), *place, *given)
        lines = said.splitlines()
        case = f"{option} {value[:40]!r}: {code}, {raised or said[-300:]!r}"
        may_pass = number >= len(bad) or (option, value) in EXPLAINED
        if code == 2:
            if len(lines) != 1 or (f"--{option}" not in said and "unknown option" not in said):
                wrong.append(f"not one line that names it: {case}")
        elif raised or code not in (0, 1):
            wrong.append(f"a traceback, or no end: {case}")
        elif not may_pass:
            wrong.append(f"unexplained: {case}")
        elif code == 1 and "error: " not in lines[-1]:
            wrong.append(f"no line for an error: {case}")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        ("spectral_shift", "--d_model 64", "--d_model goes with --model transformer"),
        ("spectral_shift", "--heads 2", "--heads goes with --model transformer"),
        ("spectral_shift", "--model transformer --alpha 1", "--alpha goes with --model mlp"),
        ("norm_minimisation", "--lr 0.1", "--lr goes with --sgd, which is not given"),
        ("delayed_robustness", "--attack none --attack_points 4", "--attack_points goes with"),
        ("accelerating_grokking", "--autograd", "--autograd goes with --jr"),
        ("inhibiting_generalisation", "--jr none --jr_weight 1", "--jr that is not none"),
        ("modular_addition", "--p 999999937", "--p takes a prime of at most 9,973"),
        ("sparse_parity", "--n 12 --samples 1000000000", "--samples and --test_samples take"),
    ],
)
def test_options_of_another_mode_and_hopeless_sizes_are_refused(script, words, says):
    code, said, raised = ended(script, *words.split())
    assert (code, raised) == (2, None)
    assert says in said and said.count("\n") == 1


def test_what_follows_from_other_options_is_not_listed(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module("circuit_efficiency").main(["--help"])
    page = capsys.readouterr().out
    assert "--sizes" in page and "--steps" not in page and "--num_logs" not in page


@pytest.mark.parametrize(
    ("script", "words", "code", "says"),
    [
        ("jacobian_rank", "--init_scale 1e300", 1, "entries that are not finite"),
        ("linear_regions", "--init_scale 1e300", 1, "failed to converge"),
        ("norm_minimisation", "--sgd --lr 1e-300", 2, "--lr × --weight_decay takes"),
        ("norm_minimisation", "--init_std 1e300", 2, "--init_std nearer to its default"),
        ("circuit_efficiency", "--sizes 1000000000", 2, "--sizes takes at most"),
        ("comparison_to_ntk", "--output_scale 1e300", 2, "large enough for --output_scale 1e300"),
    ],
)
def test_numbers_beyond_what_a_float_counts_end_in_a_line(script, words, code, says):
    ended_with, said, raised = ended(script, *TINY[script].split(), *words.split())
    assert (ended_with, raised) == (code, None)
    assert says in said.splitlines()[-1]
