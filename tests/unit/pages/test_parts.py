"""Parts of pages: texts are escaped, columns of numbers are marked."""

from __future__ import annotations

from minimind.pages.markup import element
from minimind.pages.parts import document, note, section, table, tiles


def test_a_document_has_everything_within_itself():
    page = document("a < b", element("p", "text"), lang="zh")
    assert page.startswith('<!doctype html>\n<html lang="zh"><head><meta charset="utf-8">')
    assert "<title>a &lt; b</title>" in page
    assert "width=device-width" in page
    assert "</head><body><p>text</p></body></html>" in page
    assert "http" not in page


def test_a_table_marks_numbers_and_a_line():
    found = table(["name", "#number"], [["<a>", "1"], ["b", "2"]], marked=[False, True])
    assert '<th class="number">number</th>' in found
    assert "<td>&lt;a&gt;</td>" in found
    assert '<tr class="now"><td>b</td><td class="number">2</td></tr>' in found


def test_sections_tiles_and_notes():
    assert section("Rows & more", [note("n")]) == ('<section><h2>Rows &amp; more</h2><p class="soft">n</p></section>')
    assert '<div class="tile"><b>3</b>rows</div>' in tiles([("3", "rows")])
