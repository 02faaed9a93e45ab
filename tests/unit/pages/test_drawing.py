"""What pygal draws becomes markup that refers to nothing, runs nothing, and is the same each time."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pygal
import pytest

from minimind.pages.drawing import WIDTH, Look, picture, settings, svg_file
from minimind.pages.markup import Markup
from tests.unit.pages.made import parsed, titles, words

HOSTILE = '</svg><script>alert(1)</script> " & 好'


def drawn(**attributes):
    chart = pygal.Bar(**settings(100), x_labels=["one", HOSTILE])
    chart.add(HOSTILE, [1, 2], formatter=lambda value: f"{value} {HOSTILE}")
    chart.add("b", [3, 4], formatter=lambda value: "")
    return picture(chart, [Look(colour="#111111"), Look(colour="#222222", opacity=0.5, stroke=1)], **attributes)


def test_a_picture_refers_to_nothing_and_runs_nothing():
    assert isinstance(drawn(), Markup)
    assert not re.search(r" id=|url\(|href|https?:|xmlns|<style|<defs|<!--|<script|<desc|\d{4}-\d\d|Pygal", drawn())
    assert drawn() == drawn()


def test_what_is_given_is_text():
    assert words(parsed(drawn()))[-2:] == ["one", HOSTILE]
    assert titles(parsed(drawn())) == [f"1 {HOSTILE}", f"2 {HOSTILE}"]


def test_a_picture_has_the_attributes_that_it_is_given():
    svg = parsed(drawn(aria_label="a <b>")).find("svg")
    assert svg.attrib == {"viewBox": f"0 0 {WIDTH} 100", "role": "img", "class": "chart", "aria-label": "a <b>"}
    assert 'viewBox="1 2 3 4"' in drawn(viewBox="1 2 3 4")


def test_series_look_as_they_are_told_and_nothing_else_is_left():
    svg = parsed(drawn()).find("svg")
    series = [group for group in svg.iter("g") if group.get("class") == "series"]
    assert [group.get("style") for group in series] == [
        "color:#111111;fill-opacity:1;stroke-width:2.2",
        "color:#222222;fill-opacity:0.5;stroke-width:1",
    ]
    assert len(list(svg.iter("rect"))) == 4, "no background, no tooltip"
    assert all(len(group) for group in svg.iter("g")), "no empty groups"


def test_each_shape_has_its_own_title():
    """A browser shows the first title within an element: side by side in one group all shapes would have the first."""
    groups = [group for group in parsed(drawn()).iter("g") if group.find("title") is not None]
    assert [[child.tag for child in group] for group in groups] == [["rect", "title"]] * 2


def test_a_file_of_pictures_beside_each_other_needs_nothing_else():
    text = svg_file([drawn(cls="across"), drawn(cls=None)], [440, 440], 100)
    svg = ElementTree.fromstring(text)
    assert (svg.get("width"), svg.get("height"), svg.get("viewBox")) == ("880", "100", "0 0 880 100")
    assert [group.get("transform") for group in svg if group.tag.endswith("}g")] == [
        "translate(0, 0)",
        "translate(440, 0)",
    ]
    assert ".chart .series { fill: currentColor; }" in text
    assert not re.search(r"url\(|href|<script|@import|http(?!://www.w3.org/2000/svg)", text)


@pytest.mark.parametrize("name", ["x", "y", "width", "height"])
def test_coordinates_have_one_digit(name):
    values = [rect.get(name) for rect in parsed(drawn()).iter("rect") if rect.get(name)]
    assert values
    assert all(re.fullmatch(r"\d+(\.[1-9])?", value) for value in values)
