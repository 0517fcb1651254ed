"""The page: valid, escaped, accessible, the same bytes for the same input, and made without torch."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib
import pytest
from matplotlib.image import imread

from hf_early_ood import names
from hf_early_ood.atomic import write_jsonl
from hf_early_ood.cli import USER_ERROR, main
from hf_early_ood.dynamics import Measurement
from hf_early_ood.errors import ResumeError
from hf_early_ood.report.figures.early import draw_group_maps
from hf_early_ood.report.figures.style import LIGHT, narrow
from hf_early_ood.report.html import Drawn, render, write_page
from hf_early_ood.report.material import read_material
from hf_early_ood.report.page import Page
from hf_early_ood.report.study_page import make_page
from hf_early_ood.results import MetricValue, RunRecord, StudyRecord, read_study, write_record
from tests.report import folders, records

EVIL = "<script>alert(1)</script>"
LONG = "a_name_that_is_much_too_long_for_any_figure_or_table_because_a_script_has_made_it_up_"
HTML = "{http://www.w3.org/1999/xhtml}"
VOID = Drawn("data:image/svg+xml;base64,AAAA", 10, 10)


def a_run(folder: Path) -> Path:
    folders.write_run(folder, folders.run("gradual", 1, 0.01, ["movie", "amazon"], True))
    return folder


def a_broken_study(folder: Path) -> Path:
    """A failed run, an arm without runs, a metric without a value, and files that cannot be read."""
    study = folders.make_study(folder)
    standard, gradual = (list(study.arms[arm]) for arm in ("standard", "gradual"))
    gradual[0] = replace(
        gradual[0], status="failed", error=f"RuntimeError: {EVIL}", evaluation=None, seconds=None, updates=None
    )
    scored = standard[1].evaluation
    assert scored is not None
    nothing = replace(scored.ood["balanced_accuracy"], macro_mean=MetricValue(None))
    movie = replace(scored.splits["ood/movie"], metrics={"balanced_accuracy": MetricValue(None)})
    scored = replace(
        scored, splits={**scored.splits, "ood/movie": movie}, ood={**scored.ood, "balanced_accuracy": nothing}
    )
    standard[1] = replace(standard[1], evaluation=scored)
    arms = {"standard": tuple(standard), "gradual": tuple(gradual), "never": ()}
    write_record(folder / names.STUDY_FILE, replace(study, arms=arms))
    (folder / "arm0" / "seed1" / names.RESULTS_FILE).write_text("{")
    (folder / "arm1" / "seed2" / names.PREDICTIONS_FILE).write_bytes(b"no parquet")
    (folder / "arm1" / "seed2" / names.DYNAMICS_FILE).write_text('{"step": 1, "measure"\n')
    return folder


def a_study(**settings: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folders.make_study(folder, **settings)  # type: ignore[arg-type]
        return folder

    return make


def only_a_record(folder: Path) -> Path:
    folders.make_study(folder / "elsewhere")
    file = folder / "kept.json"
    shutil.copy(folder / "elsewhere" / names.STUDY_FILE, file)
    return file


def not_compared(folder: Path) -> Path:
    study = folders.make_study(folder)
    nothing = dict.fromkeys(study.arms, ())
    write_record(folder / names.STUDY_FILE, replace(study, arms=nothing, comparisons=()))
    return folder


CASES = {
    "study": a_study(),
    "run": a_run,
    "sizes": a_study(sizes=(100, None), seeds=(1,)),
    "one set, one seed": a_study(sets=["only"], seeds=[1], predictions=False),
    "languages": a_study(languages=["de", "fr", "sw"]),
    "many sets": a_study(sets=[f"set {number}" for number in range(40)], seeds=[1, 2]),
    "many arms": a_study(arms=["standard", *(f"arm_{number}" for number in range(17))], seeds=[1, 2]),
    "evil": a_study(arms=["standard", EVIL, f"{LONG} $x$"], sets=[EVIL, LONG, "a\x07b"], languages=["de", EVIL, "fr"]),
    "broken": a_broken_study,
    "only a record": only_a_record,
    "nothing yet": not_compared,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    return {case: make_page(read_material(make(tmp_path_factory.mktemp("case")))) for case, make in CASES.items()}


def as_html(page: Page) -> str:
    return render(page, {picture.name: [VOID] * 4 for picture in page.pictures()})


def parsed(text: str) -> Element:
    return html5lib.HTMLParser(strict=True).parse(text)


def found(root: Element, tag: str) -> list[Element]:
    return list(root.iter(HTML + tag))


def words(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


@pytest.mark.parametrize("case", CASES)
def test_page_is_valid_and_accessible(pages: dict[str, Page], case: str) -> None:
    root = parsed(as_html(pages[case]))
    assert root.get("lang") == "en"
    assert found(root, "script") == []
    assert len(found(root, "h1")) == 1
    levels = [int(element.tag[-1]) for element in root.iter() if re.fullmatch(f"{HTML}h[1-6]", str(element.tag))]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    keys = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(keys) == len(set(keys))
    assert all((link.get("href") or "")[1:] in keys for link in found(root, "a"))
    assert all(element.get("aria-labelledby", keys[0]) in keys for element in root.iter())
    for table in found(root, "table"):
        assert [child.tag for child in table][:3] == [HTML + "caption", HTML + "thead", HTML + "tbody"]
        assert words(table[0])
        assert {cell.get("scope") for cell in found(table, "th")} == ({"col", "row"} if found(table, "td") else {"col"})
    for image in found(root, "img"):
        assert len(image.get("alt") or "") > 20
    sources = [image.get("src") for image in found(root, "img")] + [s.get("srcset") for s in found(root, "source")]
    assert all((source or "").startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.search(r"(?:src|srcset|href)=\"(?!data:|#)|url\(|@import", as_html(pages[case]))


@pytest.mark.parametrize("case", CASES)
def test_page_begins_with_the_verdict(pages: dict[str, Page], case: str) -> None:
    headings = [words(element) for element in found(parsed(as_html(pages[case])), "h2")]
    assert headings[0] == "Verdict"
    assert all(part.paragraphs for part in pages[case].parts)


def test_whatever_comes_from_data_is_escaped(pages: dict[str, Page]) -> None:
    text = as_html(pages["evil"])
    assert EVIL not in text
    root = parsed(text)
    said = words(root)
    assert f"{EVIL} against standard" in said
    assert any(EVIL in words(cell) for cell in found(root, "th"))
    assert any(EVIL in (image.get("alt") or "") for image in found(root, "img"))


def test_what_a_study_has_is_shown(pages: dict[str, Page]) -> None:
    drawn = [picture.name for picture in pages["languages"].pictures()]
    assert drawn == [
        "scores", "differences", "tradeoff", "languages", "signals", "group_measures", "loss", "learning_rates",
        "reliability", "costs",
    ]  # fmt: skip
    assert pages["languages"].missing == ()
    said = words(parsed(as_html(pages["languages"])))
    assert "gradual: layers were released from update 10 of 120 on (signal stable); measuring took 2.5% more" in said
    for heading in ("By language", "Calibration", "What it cost", "The single runs", "Configuration", "Commands"):
        assert heading in said


def test_every_measure_of_all_parameters_is_shown(tmp_path: Path) -> None:
    folders.make_study(tmp_path)
    for path in tmp_path.glob("*/seed*"):
        file = path / names.DYNAMICS_FILE
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        for step in (0, 10, 20):
            common = {"step": step, "per_group": {}, "normalized": None}
            lines += [{**common, "measure": "hessian_top_eigenvalue", "value": 2.0 + step}]
            lines += [{**common, "measure": "trajectory", "value": float(step)}]
        write_jsonl(file, lines)
    pictures = {picture.name: picture for picture in make_page(read_material(tmp_path)).pictures()}
    assert "Hessian top eigenvalue, gradual: from 2 to 22" in pictures["measures"].alt
    assert "Trajectory, gradual: from 0 to 20" in pictures["measures"].alt  # its signal is another one
    assert "Fisher trace" not in pictures["measures"].alt
    pictures["measures"].draw(narrow(LIGHT)).draw_without_rendering()
    figure = pictures["measures"].draw(LIGHT)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Hessian top eigenvalue", "Trajectory"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["standard", "gradual"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]


def test_arms_are_compared_in_the_same_colors() -> None:
    def series(most: float) -> list[Measurement]:
        return [Measurement(step, "trajectory", None, None, {"head": 0.0, "block.0": most * step}) for step in (0, 5)]

    figure = draw_group_maps({"far": series(1.0), "near": series(0.1)}, LIGHT)
    assert [axes.collections[0].get_clim() for axes in figure.axes[:2]] == [(0.0, 5.0)] * 2


@pytest.mark.parametrize(("updates", "shown"), [(0.1, "10% of the updates"), (12, "12 updates")])
def test_the_loss_of_a_pretext_is_called_one(tmp_path: Path, updates: float, shown: str) -> None:
    config = {"intervention": {"pretext": {"kind": "masked_lm", "updates": updates}}}
    folders.write_run(tmp_path, folders.run("masked", 1, 0.01, ["movie"], False, config=config))
    said = words(parsed(as_html(make_page(read_material(tmp_path)))))
    assert f"The first loss is that of another task: masked (masked_lm for {shown})." in said


def test_a_run_is_shown_without_comparisons(pages: dict[str, Page]) -> None:
    drawn = [picture.name for picture in pages["run"].pictures()]
    assert drawn == ["scores", "signal", "group_measures", "loss", "learning_rates", "reliability", "costs"]
    said = words(parsed(as_html(pages["run"])))
    assert "One run does not tell whether its way of training has helped" in said
    assert "Layers were released from update 10 of 120 on" in said
    assert "git commit" in said


def test_sizes_have_a_curve_and_their_own_figures(pages: dict[str, Page]) -> None:
    drawn = [picture.name for picture in pages["sizes"].pictures()]
    assert drawn[0] == "sizes"
    assert {"scores_size100", "scores_sizeall", "reliability_size100"} <= set(drawn)
    headings = [words(element) for element in found(parsed(as_html(pages["sizes"])), "h2")]
    assert headings[1:4] == ["Over the sizes of the training set", "100 training examples", "all training examples"]


def test_many_sets_and_many_arms_get_several_figures(pages: dict[str, Page]) -> None:
    assert {"scores_1", "scores_2", "scores_3"} <= {picture.name for picture in pages["many sets"].pictures()}
    assert {"reliability_1", "reliability_3"} <= {picture.name for picture in pages["many arms"].pictures()}


def test_what_is_missing_is_said(pages: dict[str, Page]) -> None:
    gone = " ".join(pages["broken"].missing)
    assert "arm0/seed1/results.json cannot be read" in gone
    assert "arm1/seed2/predictions.parquet cannot be read" in gone
    assert "arm1/seed2/dynamics.jsonl cannot be read" in gone
    said = words(parsed(as_html(pages["broken"])))
    assert f"failed: RuntimeError: {EVIL}" in said
    assert "never cannot be compared with standard" in said
    gone = " ".join(pages["only a record"].missing)
    assert "Loss, environment and commands of 6 runs" in gone
    assert "Reliability: there are no predictions" in gone
    assert {"scores", "differences", "tradeoff", "costs"} == {p.name for p in pages["only a record"].pictures()}
    assert "Scores: no run is complete." in pages["nothing yet"].missing


def test_a_run_that_failed_has_a_page(tmp_path: Path) -> None:
    record = replace(records.run(), status="failed", error="OutOfMemory", evaluation=None, training=None, timing={})
    folders.write_run(tmp_path, record)
    said = words(parsed(as_html(make_page(read_material(tmp_path)))))
    assert "The run has failed: OutOfMemory" in said
    assert "There are no scores." in said


def test_older_records_without_learning_rates_say_so(tmp_path: Path) -> None:
    a_run(tmp_path)
    data = json.loads((tmp_path / names.RESULTS_FILE).read_text())
    del data["training"]["learning_rate_curve"]
    (tmp_path / names.RESULTS_FILE).write_text(json.dumps(data))
    page = make_page(read_material(tmp_path))
    assert "Learning rates: they were not recorded; which layer groups train is shown." in page.missing
    assert "learning_rates" in {picture.name for picture in page.pictures()}


def test_command_writes_the_page_and_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run")
    before = {file.name for file in run.iterdir()}
    assert main(["report", str(run), "--dry-run"]) == 0
    assert {file.name for file in run.iterdir()} == before
    planned = capsys.readouterr().out
    assert main(["report", str(run)]) == 0
    assert f"{run / 'report.html'}" in capsys.readouterr().out
    figures = {file.name for file in (run / names.REPORT_FIGURES_FOLDER).iterdir()}
    assert figures == {
        name for line in planned.splitlines()[1:] for name in line.split(", ") if name[-4:] in (".png", ".svg")
    }
    assert imread(run / names.REPORT_FIGURES_FOLDER / "scores.png").shape[1] == 1200
    assert main(["report", str(run / "results.json"), "--output", str(tmp_path / "other"), "--dry-run"]) == 0
    assert str(tmp_path / "other" / "report.html") in capsys.readouterr().out
    assert not (tmp_path / "other").exists()
    parsed((run / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("content", [None, "no json", "[]"])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / names.RESULTS_FILE).write_text(content)
    with pytest.raises(ResumeError, match=r"no run and no study|not JSON|schema_version"):
        read_material(tmp_path)
    assert main(["report", str(tmp_path)]) == USER_ERROR
    assert "error:" in capsys.readouterr().err


WITHOUT = """
import sys
for name in ("torch", "transformers", "datasets", "accelerate", "peft"):
    sys.modules[name] = None
from hf_early_ood.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_the_same_bytes_in_another_process_without_torch(tmp_path: Path) -> None:
    study = a_study(arms=["standard", EVIL], sets=["a", EVIL], seeds=[1])(tmp_path / "study")
    write_page(make_page(read_material(study)), tmp_path / "here")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "report", str(study), "--output", str(tmp_path / "there")],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here = {path.relative_to(tmp_path / "here"): path for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert len(here) > 10
    for name, path in here.items():
        assert path.read_bytes() == (tmp_path / "there" / name).read_bytes(), name


def test_types_of_records_are_told_apart(tmp_path: Path) -> None:
    assert isinstance(read_material(a_run(tmp_path / "run")).record, RunRecord)
    assert isinstance(read_material(a_study()(tmp_path / "study")).record, StudyRecord)
    assert read_study(tmp_path / "study" / names.STUDY_FILE).name == "a study"
