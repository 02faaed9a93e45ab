"""Plots are well-formed SVG: points lie in their frame, in their order, at round ticks."""

from __future__ import annotations

import pytest

from minimind.pages.drawing import WIDTH
from minimind.pages.plots import PointSeries, cloud, lines, ticks
from tests.unit.pages.made import parsed, paths, titles, words


def series(*points, name="loss", **options):
    return PointSeries(name=name, colour="#123456", points=points, **options)


def names(drawn):
    return [span.find("i").tail for span in drawn.findall(".//span")]


def test_a_line_rises_with_its_values_within_the_frame():
    drawn = parsed(lines([series((0, 1.0), (10, 3.0), (20, 2.0))], "step"))
    (places,) = paths(drawn)
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 < y2 < y0  # down is more
    assert y0 - y2 == pytest.approx((y0 - y1) / 2, abs=0.2)
    assert names(drawn) == ["loss: 2"]
    assert drawn.find("svg").get("aria-label") == "loss: 2"
    assert drawn.findall("div")[-1].text == "step"
    assert all(0 <= x <= WIDTH and 0 <= y <= 180 for x, y in places)


def test_one_point_or_equal_values_are_drawn_too():
    drawn = parsed(lines([series((5, 2.0)), series((5, 2.0), (6, 2.0), name="other", pale=True)], "step"))
    assert len(list(drawn.iter("circle"))) == 1
    assert titles(drawn) == []
    assert names(drawn) == ["loss: 2", "other: 2"]
    assert len(paths(parsed(lines([series((1, 0.0), (2, 0.0))], "step")))) == 1
    assert len(list(parsed(lines([series((0, 0.0))], "step")).iter("circle"))) == 1


def test_the_background_of_others_is_thin():
    drawn = lines([series((5, 2.0), (6, 2.0)), series((5, 2.0), (6, 2.0), pale=True)], "step")
    assert (drawn.count("stroke-width:2.2"), drawn.count("stroke-width:1.3")) == (1, 1)


def test_a_long_line_keeps_its_shape_and_its_end():
    points = [(step, float(step % 7)) for step in range(5000)]
    (found,) = paths(parsed(lines([series(*points)], "step")))
    assert 380 <= len(found) <= 402
    assert found == sorted(found)
    assert f"loss: {4999 % 7}" in lines([series(*points)], "step")


def test_small_and_large_numbers_are_short():
    drawn = parsed(lines([series((0, 0.0), (40_000, 3e-4))], "step"))
    assert {"0", "1e-4", "3e-4", "10,000", "40,000"} <= set(words(drawn))


def test_steps_are_whole():
    assert words(parsed(lines([series((1, 0.5), (2, 1.0))], "step")))[-2:] == ["1", "2"]


def test_a_cloud_has_a_dot_for_each_point_and_lines_at_zero():
    drawn = parsed(cloud([series((-1, -2.0), (3, 4.0), (0, 0.0))], "tokens", "margin <"))
    assert len(list(drawn.iter("circle"))) == 3
    assert titles(drawn) == []
    zeros = [path for path in drawn.iter("path") if path.get("class") == "axis line"]
    assert len(zeros) == 2
    assert drawn.find("svg").get("class") == "chart cloud"
    assert [div.text for div in drawn.findall("div")] == ["margin <", "tokens"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.61, 0.72, [0.62, 0.64, 0.66, 0.68, 0.7, 0.72]),
        (-3, 2, [-3, -2, -1, 0, 1, 2]),
        (0, 4e-7, [0, 1e-7, 2e-7, 3e-7, 4e-7]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)
