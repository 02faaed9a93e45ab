"""The picture of a sweep: an SVG that stands alone, with a bar for each run and metric."""

from __future__ import annotations

from xml.etree import ElementTree

from minimind.sweep.plan import FINISHED, STOPPED
from minimind.sweep.plot import sweep_svg
from minimind.sweep.results import read_result
from tests.unit.sweep.made import evaluated, plans, write_run

SVG = "{http://www.w3.org/2000/svg}"


def picture(folder):
    found = plans(folder, "--beta", "0.05,0.1,0.3", "--chat_template", "<x>&y")
    write_run(found[0], FINISHED, evaluated(8, 0.5, -0.25, 0.8))
    write_run(found[1], STOPPED, evaluated(8, 1.0, 0.75, 0.4))
    return ElementTree.fromstring(sweep_svg([read_result(plan) for plan in found]))


def bars(svg):
    return [rect for rect in svg.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]


def test_a_bar_for_each_metric_of_each_run_that_has_it(tmp_path):
    svg = picture(tmp_path)
    found = bars(svg)
    assert len(found) == 2 * 3
    # The finished run first, although the other has more; its bars are opaque.
    accuracy, better = found[:2]
    assert accuracy.find(f"{SVG}title").text == "beta-0.05: 0.5"
    assert float(accuracy.get("width")) * 2 == float(better.get("width"))
    assert (accuracy.get("fill-opacity"), better.get("fill-opacity")) == ("1", "0.35")
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert texts[:3] == ["beta 0.05", "beta 0.1", "beta 0.3"]
    assert texts.count("-") == 3


def test_a_negative_margin_goes_to_the_left_of_zero(tmp_path):
    svg = picture(tmp_path)
    negative, positive = bars(svg)[2:4]
    assert negative.find(f"{SVG}title").text == "beta-0.05: -0.25"
    end = float(negative.get("x")) + float(negative.get("width"))
    assert abs(end - float(positive.get("x"))) < 0.2
    assert abs(float(negative.get("width")) * 3 - float(positive.get("width"))) < 0.5


def test_nothing_lies_outside_of_the_picture(tmp_path):
    svg = picture(tmp_path)
    width, height = float(svg.get("width")), float(svg.get("height"))
    for rect in svg.iter(f"{SVG}rect"):
        x, y = float(rect.get("x", 0)), float(rect.get("y", 0))
        assert x >= 0
        assert x + float(rect.get("width")) <= width + 0.1
        assert y + float(rect.get("height")) <= height + 0.1
