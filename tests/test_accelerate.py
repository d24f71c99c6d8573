"""accelerate.py: one run of the leaderboard, and how its settings are drawn."""

import math
from pathlib import Path

import numpy
import pytest
import yaml

import accelerate
from helpers import code_of
from lab.bench.files import read_metrics
from lab.methods.interface import methods
from lab.methods.trials import SHARED, drawn

METHODS = methods()


def made(capsys, *words):
    """The folder of a run, and its config.yaml."""
    assert accelerate.main([*words, "--device", "cpu"]) == 0
    folder = capsys.readouterr().out.strip()
    return folder, yaml.safe_load(Path(folder, "config.yaml").read_text())


def test_a_run_ends_when_the_target_has_been_held_for_a_hundred_updates(capsys):
    words = ("--task", "xor_clusters", "--method", "grokalign", "--trial", "0")
    folder, config = made(capsys, *words)
    assert folder == "runs/accelerate/task=xor_clusters,method=grokalign,trial=0"
    results, m = config["results"], read_metrics(folder)
    held = results["held_at"]
    assert results["updates"] == m["step"][-1] == held + 100 < config["steps"]
    assert (m["test_accuracy"][m["step"] >= held] >= results["target"]).all()
    assert m["test_accuracy"][m["step"] == held - 10] < results["target"]
    assert {k: results[k] for k in ("lr", "weight_decay", "jr")} == drawn(
        METHODS["grokalign"], "xor_clusters", 0
    )


def test_held_is_at_every_measurement_since():
    def held(*accuracies):
        steps = 10.0 * numpy.arange(len(accuracies))
        return accelerate.held_at({"step": steps, "test_accuracy": numpy.array(accuracies)}, 0.9)

    assert held(0.1, *[0.9] * 11) == 10
    assert held(*[0.95] * 10) is None
    assert held(*[0.95] * 5, 0.89, *[0.95] * 10) is None
    assert held(*[0.95] * 5, 0.89, *[0.95] * 11) == 60


def test_divergence_is_a_result_and_final(capsys):
    words = ("--task", "sparse_parity", "--lr", "1e38", "--steps", "200")
    _, config = made(capsys, *words)
    assert config["results"]["diverged"] and config["results"]["held_at"] is None
    assert config["results"]["updates"] < 200
    assert made(capsys, *words)[1] == config
    assert not made(capsys, "--task", "sparse_parity", "--steps", "15")[1]["results"]["diverged"]


def test_trials_are_the_same_for_all_methods_and_spread_over_the_space():
    plain = [drawn(METHODS["adamw"], "sparse_parity", trial) for trial in range(16)]
    for method in METHODS.values():
        for trial, settings in enumerate(plain):
            own = drawn(method, "sparse_parity", trial)
            assert settings.items() <= own.items()
            assert own.keys() - settings.keys() == method.knobs().keys()
            assert all(k.least <= own[name] <= k.most for name, k in method.knobs().items())
    assert plain[3] != drawn(METHODS["adamw"], "modular_mlp", 3)
    for name, knob in SHARED.items():
        shares = [math.log(s[name] / knob.least) / math.log(knob.most / knob.least) for s in plain]
        assert sorted(int(16 * share - 1e-9) for share in shares) == list(range(16))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--method sgd", "--method takes one of adamw, decay_after_memorising"),
        ("--task parity", "--task takes one of modular_mlp, modular_transformer"),
        ("--trial 2 --lr 0.1", "--trial draws --lr, --weight_decay and --knobs"),
        ("--trial 2 --weight_decay 1", "--trial draws"),
        ("--trial 2 --method sam --knobs rho=1", "--trial draws"),
        ("--trial 4096", "--trial takes a whole number of at least 0 and of at most 4,095"),
        ("--method sam --knobs alpha=0.9", "has rho, as in --knobs rho=…; got 'alpha=0.9'"),
        ("--knobs alpha=0.9", "--knobs takes those of the method, which has none"),
        ("--method sam --knobs rho", "--knobs takes those of the method"),
        ("--method sam --knobs rho=0", "--knobs rho takes a number above 0"),
        ("--method sam --knobs rho=1 rho=2", "--knobs takes each knob once, got rho twice"),
        ("--method grokfast_ema --knobs alpha=1.5", "--knobs alpha takes"),
        ("--method grokfast_ma --knobs window=2.5", "--knobs window takes a whole number"),
        ("--method stablemax --task sparse_parity", "--task with the cross entropy, not with the"),
        ("--method stablemax --task xor_clusters --trial 0", "not with the mse loss"),
    ],
)
def test_bad_input_is_one_line_before_a_folder_is_made(words, says, capsys, tmp_path):
    code = code_of(accelerate.main, words.split())
    complaint = capsys.readouterr().err
    assert (code, complaint.count("\n")) == (2, 1), complaint
    assert says in complaint
    assert not (tmp_path / "runs").exists()
