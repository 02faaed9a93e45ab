"""Charts are well-formed SVG with the numbers that they were given."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from minimind.pages.charts import Bar, Histogram, Part, Series, bars, histogram

COUNTS = Histogram(start=-10, width=10, counts=(1, 0, 4))


def parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{markup}</div>")


def test_a_histogram_has_a_bar_for_each_count():
    drawn = parsed(histogram([Series(name="pairs", colour="#123456", histogram=COUNTS)], "tokens", open_start=True))
    rects = drawn.findall(".//rect")
    assert [rect.find("title").text for rect in rects] == ["-1 and less tokens: 1 pairs", "10 and more tokens: 4 pairs"]
    heights = [float(rect.get("height")) for rect in rects]
    assert heights[1] == pytest.approx(4 * heights[0], abs=0.2)
    ticks = [text.text for text in drawn.findall(".//text")]
    assert {"-10", "0", "10", "20", "4", "tokens"} <= set(ticks)
    assert drawn.find(".//div") is None, "one series needs no legend"


def test_two_series_have_a_legend():
    drawn = parsed(histogram([Series(name=name, colour="#123", histogram=COUNTS) for name in ("<a>", "b")], "tokens"))
    assert ["".join(span.itertext()) for span in drawn.findall(".//span")] == ["<a>", "b"]
    assert len(drawn.findall(".//rect")) == 4


def test_a_histogram_of_nothing_is_drawn():
    parsed(histogram([Series(name="x", colour="#123", histogram=Histogram(start=0, width=1, counts=(0,)))], "tokens"))


def test_parts_of_a_bar_follow_each_other():
    rows = [
        Bar(
            label="256", parts=(Part(name="a", colour="#1", value=1), Part(name="b", colour="#2", value=3)), note="half"
        ),
        Bar(label="512", parts=(Part(name="a", colour="#1", value=8), Part(name="b", colour="#2", value=0))),
    ]
    first, second, third, _ = parsed(bars(rows)).findall(".//rect")
    starts, widths = ([float(rect.get(name)) for rect in (first, second, third)] for name in ("x", "width"))
    assert starts[1] == pytest.approx(starts[0] + widths[0], abs=0.2)
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(8 * widths[0], abs=0.3)
    assert second.find("title").text == "256, b: 3"


def test_edges_of_numbers_that_are_not_whole():
    counts = Histogram(start=-0.1, width=0.1, counts=(1, 2, 0, 4), whole=False)
    drawn = parsed(histogram([Series(name="pairs", colour="#123", histogram=counts)], "gap", open_start=True))
    titles = [rect.find("title").text for rect in drawn.findall(".//rect")]
    assert titles == ["below 0 gap: 1 pairs", "0 to 0.1 gap: 2 pairs", "0.2 and more gap: 4 pairs"]
    assert {"-0.1", "0", "0.1", "0.2", "0.3"} <= {text.text for text in drawn.findall(".//text")}
