"""Every script on a device that is not the CPU, pretended: see pretended_cuda.py."""

import errno
import fcntl
import importlib
from pathlib import Path
from unittest import mock

import numpy
import pyautoattack
import pytest
import torch
import yaml
from pretended_cuda import CPU, Graph, Pretended, tensors_in, unsupported

import helpers
from lab.bench.captured import Graphs
from lab.bench.checkpoints import copied
from lab.bench.cli import script
from lab.bench.errors import UserError
from lab.bench.files import read_metrics
from lab.bench.loop import training
from lab.bench.runs import Run
from lab.bench.seeds import generator
from lab.bench.shared import Shared
from lab.bench.snapshots import Snapshots
from lab.regions import partition, plane_through, radii, square

WHY = unsupported()
pytestmark = [
    pytest.mark.skipif(WHY is not None, reason=f"no device can be pretended: {WHY}"),
    pytest.mark.filterwarnings("ignore:no point is classified correctly"),
]

ALL = " --order shuffled --grokfast --adv_training --jr_fraction 0.5"
# Script, more options than configs/tiny.yaml gives it, how often an update may wait, and the
# graphs that are made of it: one for each size of a batch and kind of update.
CASES = [
    ("xor_grokking", "", 0, 1),
    ("comparison_to_ntk", "", 0, 1),
    ("jacobian_rank", "--batch_size 25", 0, 2),
    ("accelerating_grokking", "--batch_size 25", 0, 3),
    ("accelerating_grokking", "plain --batch_size 25", 0, 3),
    ("inhibiting_generalisation", "--batch_size 25", 0, 2),
    ("linear_regions", "--batch_size 25", 0, 2),
    ("modular_addition", "--warmup 3", 0, 1),
    ("spectral_shift", "", 0, 1),
    ("norm_minimisation", "", 3, 0),
    ("circuit_efficiency", "--sizes 2 --seeds 1 --longest 0.2", 300, 0),
    ("sparse_parity", "--jr 0.1", 0, 2),
    ("sequence_copying", "", 0, 2),
    ("order_parameters", "", 0, 1),
    ("delayed_robustness", "--batch_size 5", 0, 2),
    ("accelerate", "", 0, 0),
]
SCRIPTS = sorted({script for script, *_ in CASES})
FLOAT64 = ("norm_minimisation", "circuit_efficiency")  # alone


def words(script, *more):
    """The script's line of `make smoke`, of few measurements, with its images in `data`."""
    helpers.write_cifar(Path("data"))
    line = f"{helpers.TINY[script]} --num_logs 4 {' '.join(map(str, more))}"
    return (line.replace(ALL, "").replace("plain", "") if "plain" in line else line).split()


class Short(pyautoattack.AutoAttack):
    """The attack with two steps instead of a hundred."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.apgd.n_iter, self.apgd.n_restarts = 2, 1


def undrawn(training):
    """Training after which the script ends, code 130, without the seconds of its figure."""

    def ending(*args, **others):
        yield from training(*args, **others)
        raise KeyboardInterrupt

    return ending


def metrics_of(folder):
    (path,) = Path(folder).glob("*/*/metrics.csv")
    return read_metrics(path.parent)


def test_every_script_is_driven():
    assert set(helpers.TINY) == set(SCRIPTS)


def weights_of(folder):
    (path,) = Path(folder).glob("*/*/checkpoint.pt")
    state = torch.load(path, weights_only=True)["state"]
    return tensors_in({name: part for name, part in state.items() if name != "snapshots"})


@pytest.mark.parametrize(("script", "options", "most_waits", "graphs"), CASES)
def test_a_run_on_cuda_is_the_run_on_the_cpu(script, options, most_waits, graphs, monkeypatch):
    """From measurement to figure, captured, interrupted and continued; and no update waits."""
    module = importlib.import_module(script)
    training, save, waits = module.training, torch.save, []
    monkeypatch.setattr(pyautoattack, "AutoAttack", Short)

    def watched(run, measure, **others):
        def interrupted(step):
            if step >= 2 and code == 130:
                raise KeyboardInterrupt
            return measure(step)

        for i, step in enumerate(training(run, interrupted, **others)):
            before = device.waits.total()
            yield step
            if i > 0:  # at its first call the regulariser looks whether points are coupled
                waits.append(device.waits.total() - before)

    def save_from_cpu(content, file):
        assert {tensor.device for tensor in tensors_in(content)} <= {CPU}
        save(content, file)

    def replayed(graph):
        before = device.waits.total()
        replay(graph)
        assert device.waits.total() == before

    replay = Graph.replay
    monkeypatch.setattr(Graph, "replay", replayed)
    monkeypatch.setattr(module, "training", undrawn(training))
    assert module.main(words(script, options, "--device cpu --out_dir cpu")) == 130
    monkeypatch.setattr(module, "training", watched)
    monkeypatch.setattr(torch, "save", save_from_cpu)
    with Pretended() as device:
        for code in (130, 0):
            every, before = 0 if code else 30, device.graphs
            more = (options, "--device cuda --out_dir cuda --checkpoint_every", every)
            assert module.main(words(script, *more)) == code
    assert max(waits) <= most_waits
    assert device.graphs - before == graphs
    assert not [place for place in device.waits if place.startswith("lab/networks/")]
    (figure,) = Path("cuda").glob("*/*/figure.png")
    assert figure.stat().st_size > 10_000
    ours, theirs = metrics_of("cuda"), metrics_of("cpu")
    assert set(ours) == set(theirs)
    for column, values in ours.items():
        numpy.testing.assert_allclose(values, theirs[column], rtol=1e-4, err_msg=column)
    if not graphs:
        return
    monkeypatch.setattr(module, "training", undrawn(training))
    with Pretended() as device:  # in one go, update by update
        more = (options, "--device cuda --out_dir eager --eager --num_logs 2")
        assert module.main(words(script, *more)) == 130
    assert device.graphs == 0
    eager = metrics_of("eager")
    assert all(numpy.array_equal(ours[key][-1], eager[key][-1], equal_nan=True) for key in ours)
    assert all(map(torch.equal, weights_of("cuda"), weights_of("eager")))


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in FLOAT64])
def test_an_apple_gpu_is_not_asked_for_float64(script, monkeypatch):
    module = importlib.import_module(script)
    monkeypatch.setattr(pyautoattack, "AutoAttack", Short)
    monkeypatch.setattr(module, "training", undrawn(module.training))
    with Pretended("mps"):
        assert module.main(words(script, "--device mps --dtype float32 --steps 1")) == 130


def test_what_a_run_keeps_does_not_fill_the_device():
    with Pretended():
        kept, network = Snapshots(), torch.nn.Linear(2, 2).to("cuda")
        kept.keep("network", 0, network)
        kept.keep("spectrum", 0, torch.ones(2, device="cuda"))
        assert {tensor.device for tensor in tensors_in(kept.state_dict())} == {CPU}


def test_linear_regions_are_found_on_the_cpu_wherever_the_network_is():
    network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    x = torch.randn(3, 4)
    expected = radii(network, x), partition(network, plane_through(x), square((0, 0), 2.0)).areas()
    with Pretended():
        network, x = network.to("cuda"), x.to("cuda")
        found = radii(network, x), partition(network, plane_through(x), square((0, 0), 2.0)).areas()
    assert torch.equal(found[0], expected[0]) and numpy.array_equal(found[1], expected[1])


# Captured updates


def toy(body, steps=6, device="cuda", **options):
    """Trains a line by a loop of which `body` does one update."""
    run = Run("toy", Shared(steps=steps, num_logs=2, device=device, quiet=True, **options))
    network = torch.nn.Linear(3, 1).to(run.device)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)
    x, draws = torch.ones(4, 3, device=run.device), run.generator("toy")
    for _ in training(run, lambda step: {}, network=network, optimiser=optimiser):
        loss = network(x).square().mean()
        body(loss, draws)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network, optimiser


REFUSED = {
    "a number that is read": lambda loss, draws: float(loss.detach()),
    "a tensor from the CPU": lambda loss, draws: torch.ones(1).to(loss.device),
    "a seed": lambda loss, draws: draws.manual_seed(0),
    "a state": lambda loss, draws: torch.cuda.set_rng_state(torch.zeros(16)),
    "a draw of nobody's": lambda loss, draws: torch.rand(1, device=loss.device),
    "a wait": lambda loss, draws: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_captured_ends_in_a_line(what, capsys):
    main = script(lambda argv: toy(REFUSED[what], eager="--eager" in argv))
    with Pretended() as device:
        assert main([]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "no CUDA graph of the update" in line and "--eager" in line
        assert device.graph is None and device.current_stream() is device.streams[0]
        assert main(["--eager"]) == 0


def test_an_update_draws_from_the_generator_of_its_step():
    """Also the one that was captured, and those after an interruption."""
    drawn = {}
    for name, ends in {"whole": (8,), "parts": (5, 8)}.items():
        with Pretended() as device:
            total = torch.zeros(2, device="cuda")
            for end in ends:
                # What an interrupted run saves is tested elsewhere.
                begin = 0 if end == ends[0] else ends[0]
                run = Run("toy", Shared(steps=end, num_logs=2, device="cuda", name=f"{name}{end}"))
                run.step, draws = begin, run.generator("noise")
                for _ in training(run, lambda step: {}):
                    total += torch.rand(2, generator=draws, device="cuda") / 3
            drawn[name] = total.cpu()
            assert device.replays > 0
    assert torch.equal(drawn["whole"], drawn["parts"])
    each = [torch.rand(2, generator=generator(0, "noise", step)) / 3 for step in range(8)]
    assert torch.equal(drawn["whole"], sum(each))


def test_an_update_is_captured_where_its_tensors_are():
    with Pretended(count=2) as device:
        toy(lambda loss, draws: None, device="cuda:1")
    assert (device.graphs, device.replays, device.current) == (1, 3, 0)


def test_adam_goes_on_where_another_device_has_stopped():
    with Pretended():
        there = copied(toy(lambda loss, draws: None)[1].state_dict())
        assert there["param_groups"][0]["capturable"]
    for device, updates in (("cpu", 7), ("cuda", 8)):
        with Pretended():
            run = Run("toy", Shared(device=device, name=device * 2))
            optimiser = torch.optim.AdamW([torch.ones(1, 3, device=device)], fused=True)
            optimiser.load_state_dict(first_only(there))
            Graphs(run, {"optimiser": optimiser}, lambda step: None)
            for parameter in optimiser.param_groups[0]["params"]:
                parameter.grad = torch.ones_like(parameter)
            optimiser.step()
            assert optimiser.param_groups[0]["capturable"] == (device == "cuda")
            assert optimiser.state[parameter]["step"] == updates
            there = copied(optimiser.state_dict())


def first_only(state):
    group = {**state["param_groups"][0], "params": [0]}
    return {"state": {0: state["state"][0]}, "param_groups": [group]}


@pytest.mark.parametrize(
    ("name", "options"), [("accelerating_grokking", "--batch_size 25"), ("sequence_copying", "")]
)
def test_draws_can_be_those_of_a_cpu(name, options, monkeypatch, capsys):
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "training", undrawn(module.training))
    assert module.main(words(name, options, "--device cpu --draws cpu --out_dir cpu")) == 130
    with Pretended() as device:
        line = words(name, options, "--device cuda --out_dir cuda")
        assert module.main([*line, "--draws", "cpu"]) == 130
        (config,) = Path("cuda").glob("*/*/config.yaml")
        assert "draws=cpu" in config.parent.name
        assert module.main([*line, "--name", config.parent.name]) == 2
    assert "draws: cpu there, device here" in capsys.readouterr().err
    assert device.graphs == 0
    ours, theirs = metrics_of("cuda"), metrics_of("cpu")
    for column, values in ours.items():
        numpy.testing.assert_allclose(values, theirs[column], rtol=1e-4, err_msg=column)


def test_a_stream_may_not_overtake_another():
    with Pretended(), pytest.raises(RuntimeError, match="has not waited"):
        x = torch.ones(2, device="cuda")
        with torch.cuda.stream(torch.cuda.Stream()):
            x + x


def test_a_capture_computes_nothing_and_a_replay_all():
    with Pretended():
        x, total = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda")
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.graph(graph, stream=stream):
            twice = 2 * x
            total += twice
        torch.cuda.current_stream().wait_stream(stream)
        assert total.tolist() == [0, 0] and twice.isnan().all()
        x.fill_(3)
        graph.replay()
        assert total.tolist() == twice.tolist() == [6, 6]


# What a machine lacks


def provenance_of(run):
    return yaml.safe_load((run.folder / "config.yaml").read_text())["provenance"]


@pytest.mark.parametrize("asked", [True, False])
def test_float32_is_float32_unless_asked(asked):
    run = Run("toy", Shared(tf32=asked))
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    assert (matmul.allow_tf32, cudnn.allow_tf32, provenance_of(run)["tf32"]) == (asked,) * 3


def test_a_package_that_is_absent_is_recorded_so(monkeypatch):
    monkeypatch.setattr("lab.bench.provenance.PACKAGES", ("torch", "no-such-package"))
    assert provenance_of(Run("toy", Shared()))["packages"]["no-such-package"] == "absent"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_not_another_process(monkeypatch, capsys, number):
    monkeypatch.setattr(fcntl, "lockf", mock.Mock(side_effect=OSError(number, "refused")))
    Run("toy", Shared())
    assert capsys.readouterr().err.count("no locks here") == 1


@pytest.mark.parametrize(
    ("number", "says"), [(errno.EAGAIN, "another process"), (errno.EIO, "--out_dir takes a folder")]
)
def test_other_faults_of_a_lock_are_named(monkeypatch, number, says):
    monkeypatch.setattr(fcntl, "lockf", mock.Mock(side_effect=OSError(number, "refused")))
    with pytest.raises(UserError, match=says):
        Run("toy", Shared())
