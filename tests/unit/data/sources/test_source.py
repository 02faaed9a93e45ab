"""Files of every kind: the same rows, numbered; what a file is, is found by its content."""

from __future__ import annotations

import gzip
import os

import pytest

from minimind.data.sources import START, Place, RowError, open_source, parse_json
from minimind.data.sources.source import LINE, ROW, Source, open_split
from minimind.errors import DataError
from tests.conftest import pair
from tests.unit.data.sources.files import ENCODED, JSON, PACKED, TABLES, TEXT_TABLES, json_lines, parquet

TEXTS = [
    {"prompt": 'Wer, ist\n"das"?', "chosen": "007", "rejected": "null"},
    {"prompt": "你好", "chosen": "很好 😀\t!", "rejected": ""},
    {"prompt": "a;b", "chosen": '{"a": "]}["}', "rejected": "\\"},
]
PAIRS = [pair(f"{one['prompt']}?", one["chosen"], f"not {one['rejected']}") for one in TEXTS]
FILES = {
    **{name: (make, rows) for name, make in {**JSON, **TABLES}.items() for rows in (PAIRS,)},
    **{f"{name} of texts": (make, TEXTS) for name, make in {**JSON, **TABLES, **TEXT_TABLES}.items()},
}


@pytest.fixture
def source_of(tmp_path):
    """A source of some bytes, under a name that says nothing of what they are."""

    def make(content: bytes) -> Source:
        (tmp_path / "pairs.dat").write_bytes(content)
        return open_source(tmp_path / "pairs.dat")

    return make


def values(source: Source) -> list:
    """Numbers and values of all rows."""
    return [(n, parse_json(content) if isinstance(content, bytes) else content) for n, content in source.rows()]


@pytest.mark.parametrize("pack", [None, *PACKED])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_rows(source_of, name, pack):
    make, rows = FILES[name]
    content = make(rows)
    source = source_of(PACKED[pack](content) if pack else content)
    assert values(source) == list(enumerate(rows, start=1))
    assert source.unit == (LINE if name.startswith("lines") else ROW)


@pytest.mark.parametrize("pack", [None, "gz"])
@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("name", [name for name in FILES if name.removesuffix(" of texts") in {**JSON, **TEXT_TABLES}])
def test_text_in_every_unicode_encoding_gives_the_same_rows(source_of, name, encoding, pack):
    make, rows = FILES[name]
    content = ENCODED[encoding](make(rows))
    assert values(source_of(PACKED[pack](content) if pack else content)) == list(enumerate(rows, start=1))


def test_rows_of_several_files_are_counted_on(tmp_path):
    one, other = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    one.write_bytes(b"\n" + json_lines(TEXTS[:2]))
    other.write_bytes(parquet(TEXTS[2:]))
    source = Source(name="owner/name, split train", files=(one, other), unit=ROW)
    assert values(source) == list(enumerate(TEXTS, start=1))
    assert source.place(3) == "owner/name, split train, row 3"


def test_rows_are_listed(source_of):
    source = source_of(b"{}")
    assert source.listed([3, 1, 2], 3) == "lines 3, 1, 2"
    assert source.listed(iter(range(9)), 2) == "lines 0, 1, ..."


REFUSED = {
    "nothing": (b"", "empty"),
    "blank lines": (b"\xef\xbb\xbf\n  \n", "empty"),
    "packed nothing": (PACKED["xz"](b""), "empty"),
    "prose": (b"Once upon a time\nthere was, perhaps, a file\n", "neither JSON nor a table: it begins with 'Once upon"),
    "prose with a comma": (b"Once upon a time, there was\na file\n", "neither JSON nor a table"),
    "noise": (bytes(range(256)), "binary"),
    "a zip archive": (b"PK\x03\x04" + b"\0" * 30, "a zip archive .*; unpack it"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html><html>", "a web page"),
    "UTF-16 without a BOM": (json_lines(TEXTS).decode().encode("utf-16-le"), "UTF-16 without a BOM; save it as UTF-8"),
    "packed twice": (PACKED["gz"](PACKED["zst"](b"{}")), "packed twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_rows_is_one_error(source_of, name):
    content, message = REFUSED[name]
    with pytest.raises(DataError, match=rf"pairs\.dat: .*{message}"):
        source_of(content)


DAMAGED = {
    "an empty array": (b"[ ]", "a JSON array without a row"),
    "an empty table": (b"a,b\n", "a table with separators without a row"),
    "an array that is cut": (JSON["pretty array"](PAIRS)[:-20], "the file ends within row 3; it is incomplete"),
    "an array and more": (b"[{}] {}", "more text behind the end of the array, which has 1 rows"),
    "objects that are cut": (JSON["pretty objects"](PAIRS)[:-20], "the file ends within row 3"),
    "a cell that does not end": (b'a,b\n1,2\n3,"4\n', "row 2: unexpected end of data"),
    "a table in Latin-1": ("a,b\n1,é\n".encode("latin-1"), "not UTF-8 after row 0 .*; save the table as UTF-8"),
    "UTF-16 of odd length": (ENCODED["UTF-16"](b"{}\n") + b"x", "damaged or incomplete"),
    **{
        f"{name} that is cut": (make(PAIRS)[:-100], "cannot be read|incomplete|damaged")
        for name, make in TABLES.items()
    },
    **{
        f"{name} that is cut": (make(json_lines(PAIRS))[:-5], "damaged or incomplete") for name, make in PACKED.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_is_one_error(source_of, name):
    content, message = DAMAGED[name]
    with pytest.raises(DataError, match=rf"pairs\.dat: .*({message})"):
        list(source_of(content).rows())


def test_row_that_cannot_be_read_is_an_error_of_its_own(source_of):
    rows = dict(source_of(b"a,b\n1,2\n1,2,3\n\n4,5\n").rows())
    assert (rows[1], rows[3]) == ({"a": "1", "b": "2"}, {"a": "4", "b": "5"})
    assert isinstance(rows[2], RowError)
    assert str(rows[2]) == "it has 3 cells, the header 2"


@pytest.mark.parametrize(("name", "problem"), [("nothing.jsonl", "no such preference file"), (".", "is a folder")])
def test_missing_file_is_an_error(tmp_path, name, problem):
    with pytest.raises(DataError, match=problem):
        open_source(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_permission_is_an_error(tmp_path):
    (tmp_path / "a").write_bytes(b"{}")
    (tmp_path / "a").chmod(0)
    with pytest.raises(DataError, match=r"a: cannot read the file \(Permission denied\)"):
        open_source(tmp_path / "a")


def test_read_error_is_reported_with_the_file(tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"{}\n")

    def fail(self, mode):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(path), "open", fail)
    with pytest.raises(DataError, match=r"pairs\.jsonl: cannot read the file \(Input/output error\)"):
        open_source(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", ["plain", "gzip"])
def test_bytes_that_are_read_are_told_and_add_up_to_the_file(source_of, name, packed):
    make, rows = FILES[name]
    content = make(rows)
    source, read = source_of(content if packed == "plain" else gzip.compress(content)), []
    list(source.rows(read.append))
    # Of arrow's formats what stands behind the last batch is not counted.
    assert 0.4 * source.size < sum(read) <= source.size
    if not any(kind in name for kind in ("arrow", "Arrow", "feather", "parquet")):
        assert sum(read) == source.size


LINES = (b'{"a": 1}\n\n{"a": 2}\r\n', b'  \n{"a": 3}\n{"a": "\xe4\xbd\xa0"}\n\n', b'{"a": 5}')


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("files", [LINES[1:2], LINES])
def test_rows_are_read_from_any_place_on(tmp_path, files, bom):
    """A place is told by the bytes read before it. Of one file rows are lines, of several they are counted."""
    paths = [tmp_path / f"{number}.jsonl" for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(bom + content)
    source = open_split("data", tuple(paths))
    assert source.has_places
    rows, places, read = [], [START], []
    for number, content in source.rows(read.append):
        rows.append((number, content))
        places.append(Place(byte=sum(read), number=number))
    assert sum(read) == source.size
    assert [number for number, _ in rows] == ([2, 3] if len(files) == 1 else [1, 2, 3, 4, 5])
    for place, start in enumerate(places[:-1]):
        assert list(source.rows(start=start)) == rows[place:]
    assert list(source.rows(start=places[-1])) == []


@pytest.mark.parametrize(
    "content",
    [gzip.compress(b'{"a": 1}\n', mtime=0), '\ufeff{"a": 1}\n'.encode("utf-16-le"), b'[{"a": 1}]', b"a,b\n1,2\n"],
)
def test_other_files_have_no_places(source_of, content):
    source = source_of(content)
    assert not source.has_places
    assert len(list(source.rows())) == 1
