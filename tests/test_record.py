"""What is copied into the repository, and runs of older code brought up to date."""

import pytest
import torch
import yaml

import inhibiting_generalisation
from lab import migrate
from lab.bench import record
from lab.bench.files import read_metrics
from lab.bench.snapshots import moments_of

TINY = ["--dataset", "digits", "--points", "60", "--width", "12", "--batch_size", "24"]
TINY += ["--device", "cpu", "--steps", "12"]


def one_run(*words):
    assert inhibiting_generalisation.main([*TINY, "--name", "one", *words]) == 0
    return record.Path("runs/inhibiting_generalisation/one")


def test_a_recorded_run_is_rounded_and_can_be_rounded_again(capsys):
    folder = one_run()
    (folder / "spectral").mkdir()
    for step in (0, 90, 100):
        (folder / f"spectral/step{step}.csv").write_text(f"share\n{(step + 1) / 3!r}\n")
    assert record.main([str(folder), "--weights", "--pictures"]) == 0
    target = record.Path("results/inhibiting_generalisation/one")
    assert capsys.readouterr().out.splitlines()[-1] == str(target)
    for column, values in read_metrics(folder).items():
        for kept, value in zip(read_metrics(target)[column], values, strict=True):
            assert abs(kept - value) <= 5.1e-8 * abs(value)
    longest = max(len(word) for word in (target / "metrics.csv").read_text().split(",")[20:])
    assert longest <= len("-1.2345678e-100\n1")
    assert (target / "config.yaml").read_bytes() == (folder / "config.yaml").read_bytes()
    assert (target / "figure.png").exists()
    tables = {path.name: path.read_text() for path in target.glob("spectral/*")}
    assert tables == {"step0.csv": "share\n0.33333333\n", "step100.csv": "share\n33.666667\n"}
    kept, recorded = moments_of(folder), moments_of(target)
    assert list(kept) == list(recorded)  # in the order of training
    assert "last" in kept
    assert recorded["last"].step == 12
    for name, weight in kept["last"].kept.items():
        assert torch.equal(recorded["last"].kept[name], weight.float())
    before = (target / "metrics.csv").read_bytes()
    assert record.main([str(target)]) == 0
    assert (target / "metrics.csv").read_bytes() == before


def test_what_is_no_finished_run_is_refused(capsys, tmp_path):
    assert record.main([str(tmp_path)]) == 2
    assert "is not a finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: "", "empty, cut or damaged after 0 rows"),
        (lambda text: text[:-2], "cut or damaged after 7 rows"),  # digits of the last number
        (lambda text: text[: text.rindex(",")] + "\n", "cut or damaged after 6 rows"),
        (lambda text: "".join(text.splitlines(True)[:-1]), "has 6 of 7 rows; the run's own com"),
    ],
)
def test_a_table_that_is_not_whole_is_refused(damage, says, capsys):
    folder = one_run("--num_logs", "8")
    path = folder / "metrics.csv"
    path.write_text(damage(path.read_text()))
    assert record.main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"record: error: {path} ") and says in line
    assert not record.Path("results").exists()


def test_an_old_run_is_brought_up_to_date_once(capsys):
    folder = one_run()
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["clip"]
    config |= {"name": None, "compare": []}
    path.write_text(yaml.safe_dump(config))
    migrate.main(["runs"])
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert "'clip': 0.0" in lines[0]
    name = "dataset=digits,points=60,width=12,batch_size=24,clip=0.0,steps=12"
    assert lines[1].endswith(f"renamed to {name}")
    migrated = yaml.safe_load((folder.with_name(name) / "config.yaml").read_text())
    assert migrated["clip"] == 0.0
    assert "compare" not in migrated
    assert list(migrated)[-1] == "provenance"
    migrate.main(["runs"])
    assert capsys.readouterr().out == ""
    assert inhibiting_generalisation.main([*TINY, "--clip", "0"]) == 0  # finished, not made again
    assert len(list(folder.parent.iterdir())) == 1


def test_folders_that_cannot_be_brought_up_to_date_are_named(capsys, tmp_path):
    assert migrate.main(["reslts"]) == 2
    assert "reslts has none" in capsys.readouterr().err
    folder = tmp_path / "xor_grokking" / "old"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("jr: [")
    assert migrate.main([str(tmp_path)]) == 2
    assert "config.yaml is damaged" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        migrate.main(["--help"])
    assert migrate.__doc__ in capsys.readouterr().out


def test_old_columns_and_results_get_their_new_names(tmp_path):
    folder = tmp_path / "xor_grokking" / "old"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,mean_alignment,centroid_alignment\n0,0.5,0.25\n")
    config = {"name": "old", "provenance": {"device": "cpu", "command": ""}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({"rows": [{"step": 0, "mean_alignment": 0.5}]}, folder / "checkpoint.pt")
    migrate.main([str(tmp_path)])
    m = read_metrics(folder)
    assert (m["alignment"], m["alignment_of_point"]) == (0.5, 0.25)
    rows = torch.load(folder / "checkpoint.pt")["rows"]
    assert rows == [{"step": 0, "alignment": 0.5}]
