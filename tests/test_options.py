"""Options of every script outside of what they take, and numbers without a bound."""

import dataclasses
import importlib

import pytest

from helpers import TINY, code_of
from lab.bench.takes import Takes


def outside(options):
    """A value beyond each bound, none of the choices, no divisor: (option, value)."""
    takes = Takes.of(options)
    for f in dataclasses.fields(options):
        what, whole = takes[f.name], f.metadata["divides"]
        if what.least is not None:
            yield f.name, what.least - 1
        if what.above is not None:
            yield f.name, what.above
        if what.most is not None:
            yield f.name, what.most + 1
        if what.choices:
            yield f.name, "no such"
        if whole:
            yield f.name, getattr(options, whole) + 1


@pytest.mark.parametrize("script", [*TINY, "sweep"])
def test_a_value_outside_is_a_line_that_names_the_option_and_makes_no_folder(
    script, tmp_path, capsys
):
    module = importlib.import_module(script)
    word = "no.yaml" if script == "sweep" else "--print_config"  # so that nothing is trained
    for name, value in outside(module.Options):
        assert code_of(module.main, [word, f"--{name}={value}"]) == 2, (name, value)
        said = capsys.readouterr().err
        assert f"error: --{name} takes " in said and said.count("\n") == 1, (value, said)
    assert not list(tmp_path.iterdir())


def test_every_number_has_a_bound_below():
    takes = {script: Takes.of(importlib.import_module(script).Options) for script in TINY}
    unbounded = {
        (script, name)
        for script, of_script in takes.items()
        for name, what in of_script.items()
        if what.kind in (int, float) and what.least is None and what.above is None
    }
    assert unbounded == {("spectral_shift", "alpha")}  # a width to any power
