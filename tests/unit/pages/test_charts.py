"""Charts are well-formed SVG with the numbers that they were given."""

from __future__ import annotations

import pytest

from minimind.pages.charts import Bar, Histogram, Part, Series, bars, histogram
from minimind.pages.drawing import WIDTH
from tests.unit.pages.made import numbers, parsed, titles, words

COUNTS = Histogram(start=-10, width=10, counts=(1, 0, 4))


def test_a_histogram_has_a_bar_for_each_count():
    drawn = parsed(histogram([Series(name="pairs", colour="#123456", histogram=COUNTS)], "tokens", open_start=True))
    assert titles(drawn) == ["-1 and less tokens: 1 pairs", "10 and more tokens: 4 pairs"]
    (left, width, low), (right, _, high) = (numbers(rect, "x", "width", "height") for rect in drawn.iter("rect"))
    assert high == pytest.approx(4 * low, abs=0.3)
    assert right - left == pytest.approx(2 * width, abs=0.2), "the empty bin has its place"
    assert words(drawn) == ["0", "1", "2", "3", "4", "-10", "0", "10", "20"]
    assert [div.text for div in drawn.findall("div")] == ["tokens"], "one series needs no legend"


def test_a_histogram_whose_ends_are_empty_has_all_its_bins():
    empty = Histogram(start=0, width=10, counts=(0, 3, 0))
    drawn = parsed(histogram([Series(name="pairs", colour="#123456", histogram=empty)], "tokens"))
    assert words(drawn)[-4:] == ["0", "10", "20", "30"]


def test_two_series_have_a_legend_and_are_seen_through():
    markup = histogram([Series(name=name, colour="#123", histogram=COUNTS) for name in ("<a>", "b")], "tokens")
    drawn = parsed(markup)
    assert ["".join(span.itertext()) for span in drawn.findall(".//span")] == ["<a>", "b"]
    assert len(list(drawn.iter("rect"))) == 4
    assert markup.count("fill-opacity:0.55") == 2
    assert drawn.find("svg").get("aria-label") == "tokens: <a>, b"


def test_a_histogram_of_nothing_is_drawn():
    drawn = histogram([Series(name="x", colour="#123", histogram=Histogram(start=0, width=1, counts=(0,)))], "tokens")
    assert list(parsed(drawn).iter("rect")) == []


def test_many_bins_have_few_marks():
    many = Histogram(start=0, width=8, counts=(1,) * 40)
    drawn = parsed(histogram([Series(name="x", colour="#123", histogram=many)], "tokens"))
    assert [word for word in words(drawn) if word] == ["0", "1", *(str(8 * bar) for bar in range(0, 41, 5))]


def made_rows():
    return [
        Bar(
            label="256", parts=(Part(name="a", colour="#1", value=1), Part(name="b", colour="#2", value=3)), note="half"
        ),
        Bar(label="<512>", parts=(Part(name="a", colour="#1", value=8), Part(name="b", colour="#2", value=0))),
    ]


def test_parts_of_a_bar_follow_each_other():
    drawn = parsed(bars(made_rows()))
    found = dict(zip(titles(drawn), (numbers(rect, "x", "y", "width") for rect in drawn.iter("rect")), strict=True))
    (x1, y1, width1), (x2, y2, width2) = found["256, a: 1"], found["256, b: 3"]
    x3, y3, width3 = found["<512>, a: 8"]
    assert x1 == pytest.approx(x3)
    assert x2 == pytest.approx(x1 + width1, abs=0.2)
    assert width2 == pytest.approx(3 * width1, abs=0.3)
    assert width3 == pytest.approx(8 * width1, abs=0.5)
    assert y1 == y2 < y3, "the first row is at the top"


def test_rows_of_bars_are_as_high_as_their_labels_and_begin_at_the_left():
    drawn = parsed(bars(made_rows()))
    assert [[cell.text for cell in column] for column in drawn.find("div[@class='bars']").findall("div")] == [
        ["256", "<512>"],
        ["half", None],
    ]
    svg = drawn.find(".//svg")
    left, top, width, height = map(float, svg.get("viewBox").split())
    assert left == pytest.approx(min(numbers(rect, "x")[0] for rect in svg.iter("rect")), abs=0.1)
    assert left + width == pytest.approx(WIDTH - left, abs=0.1)
    places = [numbers(rect, "y", "height") for rect in svg.iter("rect")]
    middles = sorted({round((y + high / 2 - top) / height, 2) for y, high in places})
    assert middles == [0.25, 0.75]


def test_bars_of_nothing_are_drawn():
    parsed(bars([Bar(label="a", parts=(Part(name="a", colour="#1", value=0),))]))


def test_edges_of_numbers_that_are_not_whole():
    counts = Histogram(start=-0.1, width=0.1, counts=(1, 2, 0, 4), whole=False)
    drawn = parsed(histogram([Series(name="pairs", colour="#123", histogram=counts)], "gap", open_start=True))
    assert titles(drawn) == ["below 0 gap: 1 pairs", "0 to 0.1 gap: 2 pairs", "0.2 and more gap: 4 pairs"]
    assert words(drawn)[-5:] == ["-0.1", "0", "0.1", "0.2", "0.3"]
