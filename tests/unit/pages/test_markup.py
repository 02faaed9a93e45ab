"""Texts of users cannot become HTML."""

from __future__ import annotations

import pytest

from minimind.pages.markup import Markup, element, joined, raw

HOSTILE = "<script>alert('1')</script> & \"quoted\""
ESCAPED = "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt; &amp; &quot;quoted&quot;"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (element("p", HOSTILE), f"<p>{ESCAPED}</p>"),
        (element("p", element("b", HOSTILE), " and ", 1), f"<p><b>{ESCAPED}</b> and 1</p>"),
        (element("p", title=HOSTILE, cls="note", data_x=None), f'<p title="{ESCAPED}" class="note"></p>'),
        (element("rect", text_anchor="end"), '<rect text-anchor="end"></rect>'),
        (element("meta", charset="utf-8"), '<meta charset="utf-8">'),
        (element("p", "see --max_seq_len."), '<p>see <span class="flag">--max_seq_len</span>.</p>'),
        (element("pre", "run --max_seq_len 8"), "<pre>run --max_seq_len 8</pre>"),
        (element("text", "--max_seq_len"), "<text>--max_seq_len</text>"),
        (element("p", "a--b --<b> ---c"), "<p>a--b --&lt;b&gt; ---c</p>"),
        (joined(HOSTILE, raw("<br>")), f"{ESCAPED}<br>"),
        # What is made of markup by the methods of a text is a text again.
        (joined(element("b", "x") + HOSTILE), f"&lt;b&gt;x&lt;/b&gt;{ESCAPED}"),
    ],
)
def test_texts_are_escaped(made, expected):
    assert made == expected
    assert isinstance(made, Markup)
