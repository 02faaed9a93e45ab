"""What a file is by its first bytes, where that is not obvious."""

from __future__ import annotations

import pytest

from minimind.data.sources.content import Kind, UnknownContentError, kind_of, separator_of
from minimind.data.sources.streams import HEAD_BYTES

KINDS = {
    "lines": (b'\n {"a": 1}\n{"a": 2}\n', Kind.LINES),
    "one line": (b'{"a": 1}', Kind.LINES),
    "a long line that is not read to its end": (b'{"a": "' + b"x" * 1000, Kind.LINES),
    "a first line that is cut, then others": (b'{"a": [\n{"a": 2}\n', Kind.LINES),
    "a first line that is no JSON, then others": (b'broken, it is\n{"a": 2}\n', Kind.LINES),
    "a line with a control character": (b'{"a": "\0"}\n', Kind.LINES),
    "objects over several lines": (b'{\n"a": 1}\n{\n', Kind.OBJECTS),
    "objects that open a list in their first line": (b'{"a": [\n  "b"]}\n', Kind.OBJECTS),
    "an array": (b" [\n", Kind.ARRAY),
    "commas": (b'chosen,rejected\n"a\nb",c\n', Kind.CSV),
    "tabs": (b"chosen, the better\trejected\na,b,c\td\n", Kind.CSV),
    "semicolons": (b"chosen;rejected\n1,5;2\n", Kind.CSV),
    "an index without a name": (b",chosen,rejected\n0,a,b\n", Kind.CSV),
    "a table whose cells have lines of code": (b'prompt,chosen\nq,"void f()\n{\n}"\nq,"{""a"": 1}"\n', Kind.CSV),
    "few objects, and no table": (b'broken\nx\ny\n{"a": 2}\n', Kind.LINES),
    "only a header": (b"chosen,rejected", Kind.CSV),
    "a header that goes on": (",".join(f"c{n}" for n in range(10**6)).encode()[:HEAD_BYTES], Kind.CSV),
    "a row that goes on": (b"a,b,c\n1," + b"x" * HEAD_BYTES, Kind.CSV),
    "a quoted cell that goes on": (b'a,b,c\n1,"' + b"x\n" * HEAD_BYTES, Kind.CSV),
}


@pytest.mark.parametrize("name", KINDS)
def test_kind(name):
    head, kind = KINDS[name]
    assert kind_of(head) is kind


@pytest.mark.parametrize(
    "head",
    [
        b"chosen\na\n",
        b"a,a\n1,2\n",
        b"a,b\n1,2,3\n",
        b"a,,b\n1,2,3\n",
        b"a" * 101 + b",b\n1,2\n",
        b"a,b\0\n1,2\n",
        b"1\n2\n",
    ],
)
def test_text_that_is_no_table_is_refused(head):
    with pytest.raises(UnknownContentError, match=r"neither JSON nor a table|binary"):
        kind_of(head)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"prompt|chosen|rejected\nq|a|b\n", "separated by a comma, a tab or a semicolon"),
        (b"sep=;\nprompt;chosen;rejected\n", "the first line of a table names each column"),
        (b"prompt,chosen,rejected,\nq,a,b,\n", "the first line of a table names each column"),
        (b"x\x9c\x03\x01\xff\n1,2\n", "binary"),
    ],
)
def test_what_resembles_a_table_is_refused_with_the_reason(head, reason):
    with pytest.raises(UnknownContentError, match=reason):
        kind_of(head)


def test_the_separator_is_the_one_with_most_names():
    assert [separator_of(head) for head in (b"a,b;c\n1,2", b"a;b,c;d\n1;2;3", b"a\tb", b"a")] == [",", ";", "\t", None]
