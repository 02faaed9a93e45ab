"""What charts share."""

from __future__ import annotations

from minimind.pages.svg import legend, number, svg, text


def test_a_chart_has_the_width_of_the_page():
    drawn = svg(80, text(1.26, 2, "<b>", anchor="end"))
    assert 'viewBox="0 0 640 80"' in drawn
    assert '<text x="1.3" y="2" text-anchor="end">&lt;b&gt;</text>' in drawn
    assert number(3.04) == "3"


def test_a_legend_tells_several_names_apart():
    assert legend([("one", "#111")]) == ""
    assert legend([("a<", "#111"), ("b", "#222")]).count("<span>") == 2
    assert "a&lt;" in legend([("a<", "#111"), ("b", "#222")])
