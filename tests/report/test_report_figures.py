"""Figures of the page: nothing overlaps or is cut off, in both widths, and they show what the records say."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from hf_early_ood import names
from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.dynamics import Dynamics, Measurement, read_dynamics
from hf_early_ood.evaluation.classification import classification_scores
from hf_early_ood.names import ID_TEST, OOD_MACRO_MEAN
from hf_early_ood.report.calibration import over_seeds, reliability
from hf_early_ood.report.figures import arms as looks
from hf_early_ood.report.figures import dots, early, progress, tradeoff
from hf_early_ood.report.figures.style import DARK, LIGHT, Look, drawing, narrow, shortened, to_png, to_svg
from hf_early_ood.report.material import read_material
from hf_early_ood.report.page import Page
from hf_early_ood.report.study_page import make_page
from hf_early_ood.results import StageRecord
from tests.report import folders, records

LONG = "a_name_that_is_much_too_long_for_any_figure_or_table_because_a_script_has_made_it_up_"
STUDIES = {
    "two arms": {"languages": ["de", "fr", "sw"]},
    "three long names": {"arms": [f"{LONG}{n}" for n in range(3)], "sets": [f"{LONG}{n}" for n in range(3)]},
    "five arms": {"arms": ["standard", "a", "b", "c", "d"], "languages": ["de", "fr", "sw"], "seeds": [1]},
    "many arms": {"arms": ["standard", *(f"intervention_{n}" for n in range(17))], "seeds": [1, 2]},
    "sizes": {"sizes": [100, 1000, None], "seeds": [1, 2]},
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    found = {}
    for name, settings in STUDIES.items():
        folder = tmp_path_factory.mktemp("study")
        folders.make_study(folder, **settings)  # type: ignore[arg-type]
        found[name] = make_page(read_material(folder))
    folder = tmp_path_factory.mktemp("run")
    folders.write_run(folder, folders.run("gradual", 1, 0.01, ["movie", "amazon"], True, languages=("de", "fr")))
    return {**found, "run": make_page(read_material(folder))}


def visible(figure: Figure) -> list[tuple[str, object]]:
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    # Ticks outside of the limits, and axes that are not drawn, are kept by matplotlib.
    outside = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not (low <= tick.get_loc() <= high and axes.get_visible()):
                    outside |= {tick.label1, tick.label2}
    # That of an annotation would have its arrow in it.
    return [(text.get_text(), Text.get_window_extent(text)) for text in texts if text not in outside]


@pytest.mark.sweep(keep=5)
@pytest.mark.parametrize("look", [LIGHT, narrow(DARK)], ids=["wide", "narrow"])
@pytest.mark.parametrize("case", [*STUDIES, "run"])
def test_nothing_overlaps_or_is_cut_off(pages: dict[str, Page], case: str, look: Look) -> None:
    for picture in pages[case].pictures():
        if picture.name.endswith("_size100"):
            continue  # like those of the other sizes
        with drawing():
            figure = picture.draw(look)
            texts = visible(figure)
        for (a, first), (b, second) in itertools.combinations(texts, 2):
            # A pixel is not seen.
            assert not first.padded(-1.5).overlaps(second.padded(-1.5)), (picture.name, a, b)  # type: ignore[attr-defined]
        cut = [text for text, box in texts if box.x0 < figure.bbox.x0 - 2 or box.x1 > figure.bbox.x1 + 2]  # type: ignore[attr-defined]
        assert cut == [], picture.name
        assert figure.get_size_inches()[0] == look.width


def test_an_arm_has_one_color_in_all_figures(pages: dict[str, Page]) -> None:
    with drawing():
        drawn = {picture.name: picture.draw(LIGHT) for picture in pages["two arms"].pictures()}
    gradual = LIGHT.arms[1]
    for name in ("scores", "differences", "tradeoff", "loss", "signals"):
        assert gradual in {line.get_color() for axes in drawn[name].axes for line in axes.lines}, name


def test_many_arms_are_colored_by_what_is_said_of_them() -> None:
    arms = ["standard", *(f"a{n}" for n in range(9))]
    base = dict.fromkeys(arms, ())
    comparisons = [folders.comparison("a1", OOD_MACRO_MEAN, 0.1, 3), folders.comparison("a2", OOD_MACRO_MEAN, -0.1, 3)]
    record = replace(records.study(), arms=base, comparisons=tuple(comparisons), metric="balanced_accuracy")
    found = looks.marks(record, LIGHT)
    assert found["standard"].marker == "s"
    assert (found["a1"].color, found["a2"].color, found["a3"].color) == (LIGHT.average, LIGHT.decision, LIGHT.muted)
    assert looks.colors_explained(record)
    assert not looks.colors_explained(records.study())


@pytest.mark.parametrize("name", ["$", "a $b$ c", "\\$", "$\\frac", "<b>&amp;", "a\x00\x07\x1b\nb", "中文", "--"])
def test_any_name_can_be_drawn(name: str) -> None:
    def draw() -> Figure:
        figure = Figure()
        figure.text(0.1, 0.5, shortened(name, 20))
        return figure

    ElementTree.fromstring(to_svg(draw))
    assert to_png(draw).startswith(b"\x89PNG")


def test_scores_are_those_of_the_record(tmp_path: Path) -> None:
    study = folders.make_study(tmp_path)
    middle, low, high = dots.score(study, "gradual", OOD_MACRO_MEAN) or (0.0, None, None)
    values = [
        run.evaluation.ood["balanced_accuracy"].macro_mean.value for run in study.arms["gradual"] if run.evaluation
    ]
    assert middle == pytest.approx(np.mean(values))
    assert (low, high) == (min(values), max(values))
    (one,) = (replace(study, arms={"gradual": study.arms["gradual"][:1]}),)
    assert dots.score(one, "gradual", ID_TEST)[2] == pytest.approx(dots.score(one, "gradual", ID_TEST)[0] + 0.02)  # type: ignore[index]


def test_front_is_of_those_that_none_dominates() -> None:
    points = {"a": (90.0, 70.0), "b": (91.0, 69.0), "c": (89.0, 69.0), "twin of a": (90.0, 70.0)}
    assert tradeoff.front(points) == ["a", "twin of a", "b"]
    assert tradeoff.front(points, higher=False) == ["c"]


@pytest.mark.parametrize("count", [1, 20, 1000])
def test_reliability_is_the_ece(count: int) -> None:
    part = folders.predicted(3, count)
    columns = part.columns
    (found,) = reliability({ID_TEST: part}).values()
    shown = found.count > 0
    ece = (found.count * abs(found.accuracy - found.confidence))[shown].sum() / found.count.sum()
    scores = classification_scores(columns["label"], columns["prediction"], columns["probabilities"])
    assert ece == pytest.approx(scores.value("ece"))
    mean, low, high = over_seeds([found])
    assert (low[shown] <= mean.accuracy[shown]).all()
    assert (mean.accuracy[shown] <= high[shown]).all()


def test_ood_sets_count_alike() -> None:
    small, large = folders.predicted(1, 10), folders.predicted(2, 1000)
    found = reliability({"ood/a": small, "ood/b": large})["OOD sets"]
    alone = [reliability({"ood/a": part})["OOD sets"] for part in (small, large)]
    right = [np.nansum(each.accuracy * each.count) / each.count.sum() for each in alone]
    assert np.nansum(found.accuracy * found.count) / found.count.sum() == pytest.approx(np.mean(right))
    assert reliability({"ood/a": replace(small, columns={"label": [0], "prediction": [0]})}) == {}


STAGES = (StageRecord(0, 0, ("head",), 1), StageRecord(1, 40, ("block.0",), 1), StageRecord(2, 80, (), 1, ("head",)))
CURVE = tuple((step, 1e-4) for step in range(10, 101, 10))


def test_rates_follow_the_scheduler_while_a_group_trains() -> None:
    falling = tuple((step, 1e-4 * (1 - step / 100)) for step in range(1, 101))
    rates = progress.rates_of(Dynamics(stages=STAGES), falling, 100)
    assert rates is not None
    assert rates.groups == ("block.0", "head")
    block, head = rates.values
    assert np.isnan(block[:40]).all()
    assert block[40:] == pytest.approx([1e-4 * (1 - (step + 1) / 100) for step in range(40, 100)])
    assert np.isnan(head[80:]).all()
    assert head[0] == pytest.approx(1e-4 * 0.99)
    assert not rates.is_uniform()


def test_rates_are_multiplied_by_the_factors_of_a_group() -> None:
    factors = ((0, {"head": 1.0}), (40, {"block.0": 0.1}), (50, {"block.0": 0.5}), (60, {"head": 2.0}))
    jumping = progress.rates_of(Dynamics(stages=STAGES[:2], rate_factors=factors), CURVE, 100)
    rising = progress.rates_of(Dynamics(stages=STAGES[:2], rate_factors=factors), CURVE, 100, warmup=True)
    assert jumping is not None
    assert rising is not None
    assert jumping.values[0, 45] == pytest.approx(1e-5)
    assert rising.values[0, 45] == pytest.approx(3e-5)  # half-way from 0.1 to 0.5
    for rates in (jumping, rising):
        assert rates.values[0, 50:] == pytest.approx(5e-5)
        assert rates.values[1, 59:61] == pytest.approx([1e-4, 2e-4])


def test_without_rates_or_stages_there_is_less_to_show() -> None:
    assert progress.rates_of(None, None, 100) is None
    trains = progress.rates_of(Dynamics(stages=STAGES), None, 100)
    assert trains is not None
    assert not trains.known
    alone = progress.rates_of(None, CURVE, 100)
    assert alone is not None
    assert alone.groups == ("all layers",)
    assert alone.is_uniform()


def test_learning_rate_events_are_read(tmp_path: Path) -> None:
    file = tmp_path / names.DYNAMICS_FILE
    file.write_text('{"step": 5, "event": "learning_rates", "factors": {"head": 2}, "trains_again": []}\n')
    assert read_dynamics(file).rate_factors == ((5, {"head": 2.0}),)


def test_signal_of_an_arm_is_what_its_detector_watched() -> None:
    series = tuple(
        Measurement(step, measure, 1.0 * step)
        for step in (0, 5)
        for measure in ("selection/fisher_trace", "gradient_norm", "average_sharpness")
    )
    decision = replace(records.intervention().decision, signal="average_sharpness")  # type: ignore[type-var]
    assert early.signal_of(Dynamics(series, (), decision))[0].measure == "average_sharpness"
    assert early.signal_of(Dynamics(series))[0].measure == "gradient_norm"
    assert early.watched({1: Dynamics(series[:1])}) is None
    # What was measured to look at it, and decides nothing, is no signal, whichever comes first.
    looking = tuple(replace(item, source=EarlyDynamicsCallback.__name__) for item in series)
    assert early.watched({1: Dynamics(looking)}) is None
    assert early.signal_of(Dynamics((*looking, series[-1])))[0].measure == series[-1].measure
