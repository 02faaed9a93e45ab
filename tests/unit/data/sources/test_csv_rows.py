"""Tables with separators: cells stay texts, and bounds."""

from __future__ import annotations

import io

import pytest

from minimind.data.sources import csv_rows
from minimind.data.sources.csv_rows import BadTableError, read_csv


def rows(text: str) -> list:
    return [row for _, row in read_csv(io.BufferedReader(io.BytesIO(text.encode())))]


def test_cells_are_texts_as_they_are():
    assert rows('a,b\r\n 007 ,NULL\r\n"x\r\n""y""",\n') == [{"a": " 007 ", "b": "NULL"}, {"a": 'x\r\n"y"', "b": ""}]


def test_long_cells_are_read():
    assert len(rows(f"a,b\n{'x' * 200_000},1\n")[0]["a"]) == 200_000


def test_number_of_columns_is_bounded(monkeypatch):
    monkeypatch.setattr(csv_rows, "MOST_COLUMNS", 2)
    with pytest.raises(BadTableError, match="it has 3 columns; 2 are the most"):
        rows("a,b,c\n1,2,3\n")


@pytest.mark.parametrize("row", ["x" * 40, '"' + "x\n" * 20 + '"', '"x\n",' * 10, "x," * 20])
def test_long_row_is_an_error_before_it_is_read(monkeypatch, row):
    """Also one whose quoted cells have many lines, each of them short."""
    monkeypatch.setattr(csv_rows, "ROW_BYTES", 30)
    assert len(rows("a,b\n" + "1,2\n" * 20)) == 20
    with pytest.raises(BadTableError, match="row 2: the row is longer than 16 MiB; or a quote in it does not end"):
        rows(f"a,b\n1,2\n{row}\n5,6\n")


def test_cell_that_does_not_end_is_an_error_with_its_row():
    with pytest.raises(BadTableError, match="row 2: "):
        rows('a,b\n1,2\n"3,4\n5,6\n')


def test_quote_within_a_cell_that_is_not_doubled_is_an_error_with_the_remedy():
    with pytest.raises(BadTableError, match=r"row 1: .*; a quote within a quoted cell is written twice"):
        rows('a,b\n"She said \\"Hay.\\"",2\n')
