"""Figure 1: linear regions and centroids as a network memorises and generalises.

    python report.py figure_1                                 # Figure 7's runs, three points
    python report.py figure_1 linear_regions/default samples=5,9,3 half_width=1

Any runs that keep their states at these moments serve, given by their folder or as SCRIPT/NAME.
Three training points span a plane; each is shown in a window of it, `half_width` to each side (2),
the same at all moments, and in the table with a control between the three. The regions are exact
(lab/regions). In the centroids red is positive and blue negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.bench.errors import UserError
from lab.bench.files import is_finished, read_config, run_folder, write_rows
from lab.bench.options import Takes
from lab.bench.statistics import markdown
from lab.data import images
from lab.regions import SliceError, radii
from lab.regions.windows import LIMIT, medians, planes
from lab.reports import Request
from lab.reports._regions import Picture, figure, pictures
from lab.reports._words import save

RUNS = ("inhibiting_generalisation/default", "inhibiting_generalisation/jr=None")
SETTINGS = {
    "samples": Takes(tuple[int, ...], least=0),
    "half_width": Takes(float, above=0),
    "most_regions": Takes(int, least=1),
}


def report(request: Request) -> None:
    """Draws the first three training points, or those of `samples=`.

    Raises:
        UserError: if there is no run, one keeps no states, or the points span no planes.
    """
    draw_points(request, "figure_1", (0, 1, 2))


def draw_points(request: Request, name: str, samples: Sequence[int]) -> None:
    """Writes NAME.png and NAME.csv into `<out_dir>/linear_regions/`, and prints the medians."""
    settings, given = _settings_and_runs(request.words)
    samples = settings.get("samples", tuple(samples))
    size = settings.get("half_width", 2.0), settings.get("most_regions", LIMIT)
    folders = _folders(request.out_dir, given)
    data = _images(folders, request.data_dir)
    try:
        planes(data.x, samples)
        drawn = pictures(folders, data.x, samples, *size)
    except SliceError as error:
        raise UserError(str(error)) from None
    rows = table(drawn, samples, data)
    means = [row for row in rows if str(row["sample"]).startswith("median")]
    print(markdown([{key: _text(row.get(key, ""), 3) for key in rows[0]} for row in means]), "\n")
    runs = ["_".join(folder.parts[-2:]) for folder in folders] if given else []
    chosen = [word for word in request.words if word not in given]
    drawing = figure(data.x, samples, drawn, request.typed)
    path = save(request, "linear_regions", [name, *runs, *chosen], drawing).with_suffix(".csv")
    write_rows(path, [{key: _text(value, 8) for key, value in row.items()} for row in rows])
    print(path)


def table(
    drawn: Sequence[Picture], samples: Sequence[int], data: images.Images
) -> list[dict[str, Any]]:
    """What is measured in each window, and medians, a row each."""
    rows = []
    for picture in drawn:
        about = {"run": picture.run, "moment": picture.moment, "step": picture.step}
        for i, window in zip(samples, picture.windows, strict=True):
            rows.append({**about, "sample": i, **window.measured()})
        rows.append({**about, "sample": "median of these", **medians(picture.windows)})
        rows.append({**about, "sample": "median between them", **medians(picture.controls)})
        for which, points in (("training", data.x), ("test", data.x_test)):
            radius = radii(picture.network, points).median().item()
            rows.append({**about, "sample": f"median of all {which} points"})
            rows[-1]["input_radius"] = radius
    return rows


def _settings_and_runs(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Words such as `samples=5,9,3`, as values; the other words."""
    settings, runs = {}, []
    for word in words:
        name, _, value = word.partition("=")
        if name in SETTINGS:
            takes = SETTINGS[name]
            settings[name] = takes(name, value.split(",") if takes.many else value)
        else:
            runs.append(word)
    return settings, runs


def _folders(out_dir: Path, given: Sequence[str]) -> list[Path]:
    if given:
        return [run_folder(word, out_dir) for word in given]
    found = [out_dir / name for name in RUNS if is_finished(out_dir / name)]
    if not found:
        raise UserError(f"there is no finished run {' or '.join(RUNS)} in {out_dir}")
    return found


def _images(folders: Sequence[Path], data_dir: str) -> images.Images:
    """Those that all of the runs were trained on."""
    first, *others = (
        {name: config.get(name) for name in ("dataset", "points")}
        for config in map(read_config, folders)
    )
    if first["dataset"] is None or any(other != first for other in others):
        raise UserError("the regions are drawn of runs that were trained on the same images")
    options = images.ImageOptions(**first, data_dir=data_dir, device="cpu")
    options.dtype = read_config(folders[0])["dtype"]
    return images.load(options)


def _text(value: Any, digits: int) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
