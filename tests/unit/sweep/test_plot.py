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
    """What a bar says below the pointer -> its place and length."""
    found = {}
    for group in svg.iter(f"{SVG}g"):
        title = group.find(f"{SVG}title")
        if title is not None:
            rect = group.find(f"{SVG}rect")
            found[title.text] = (float(rect.get("x")), float(rect.get("width", "0")))
    return found


def texts(svg):
    """Of each panel: its title, then from the top to the bottom."""
    found = []
    for panel in svg.findall(f"{SVG}g/{SVG}svg"):
        rest = sorted(panel.iter(f"{SVG}text"), key=lambda text: float(text.get("y")))
        title = panel.find(f"{SVG}text")
        found.append([title.text, *(text.text for text in rest if text is not title)])
    return found


def test_a_bar_for_each_metric_of_each_run_that_has_it(tmp_path):
    svg = picture(tmp_path)
    found = bars(svg)
    assert len(found) == 2 * 3
    zero, accuracy = found["beta-0.05, rewards/accuracies: 0.5"]
    start, better = found["beta-0.1, rewards/accuracies: 1"]
    assert zero == start
    assert abs(2 * accuracy - better) < 0.3
    opacities = [group.get("style").split(";")[1] for group in svg.iter(f"{SVG}g") if group.get("class") == "series"]
    assert opacities == ["fill-opacity:1", "fill-opacity:0.35"] * 3


def test_the_finished_run_is_the_first_although_another_has_more(tmp_path):
    accuracy, margin, loss = texts(picture(tmp_path))
    assert accuracy == [
        "rewards/accuracies, held-out",
        "beta 0.05: 0.5",
        "beta 0.1 (stopped): 1",
        "beta 0.3 (not started): -",
        "0",
    ]
    assert margin == ["rewards/margins, held-out", "-0.25", "0.75", "-", "0"]
    assert loss == ["loss, held-out", "0.8", "0.4", "-", "0"]


def test_a_negative_margin_goes_to_the_left_of_zero(tmp_path):
    found = bars(picture(tmp_path))
    negative, positive = found["beta-0.05, rewards/margins: -0.25"], found["beta-0.1, rewards/margins: 0.75"]
    assert abs(sum(negative) - positive[0]) < 0.2
    assert abs(negative[1] * 3 - positive[1]) < 0.5


def test_nothing_lies_outside_of_the_picture(tmp_path):
    svg = picture(tmp_path)
    end = 0.0
    for group in svg.findall(f"{SVG}g"):
        assert group.get("transform") == f"translate({end:g}, 0)"
        (panel,) = group
        width, height = float(panel.get("width")), float(panel.get("height"))
        end += width
        assert height == float(svg.get("height"))
        (shift,) = panel.findall(f"{SVG}g")
        left = float(shift.get("transform").removeprefix("translate(").split(",")[0])
        for rect in panel.iter(f"{SVG}rect"):
            assert float(rect.get("x")) >= 0
            assert left + float(rect.get("x")) + float(rect.get("width", "0")) <= width
        for text in panel.iter(f"{SVG}text"):
            assert 0 <= float(text.get("y")) <= height
            if float(text.get("x")) < 0:
                assert left + float(text.get("x")) >= 7.2 * len(text.text), "a label ends at its bar"
    assert end == float(svg.get("width"))


def test_a_sweep_of_which_nothing_is_known_is_drawn(tmp_path):
    svg = ElementTree.fromstring(sweep_svg([read_result(plan) for plan in plans(tmp_path, "--beta", "0.05,0.1")]))
    assert bars(svg) == {}
    assert texts(svg)[2] == ["loss, held-out", "-", "-", "0"]


def test_numbers_that_are_none_have_no_bar(tmp_path):
    found = plans(tmp_path, "--beta", "0.05,0.1")
    write_run(found[0], FINISHED, evaluated(8, 0.5, float("nan"), float("inf")))
    write_run(found[1], FINISHED, evaluated(8, 0.25, 0.75, 0.4))
    svg = ElementTree.fromstring(sweep_svg([read_result(plan) for plan in found]))
    assert len(bars(svg)) == 4
    assert texts(svg)[1:] == [
        ["rewards/margins, held-out", "nan", "0.75", "0"],
        ["loss, held-out", "inf", "0.4", "0"],
    ]


def test_chinese_labels_have_their_room(tmp_path):
    def room(name):
        found = plans(tmp_path / name, "--beta", "0.05,0.1", "--chat_template", f"{name}.jinja,b")
        panel = ElementTree.fromstring(sweep_svg([read_result(plan) for plan in found])).find(f"{SVG}g/{SVG}svg")
        return float(panel.find(f"{SVG}g").get("transform").removeprefix("translate(").split(",")[0])

    assert room("模板文件") - room("abcd") > 4 * 4.5
