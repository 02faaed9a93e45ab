"""Numbers as a person reads them."""

from __future__ import annotations

import pytest

from minimind.pages.words import count, duration, gib, part, plural, share


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count(1234567.4), "1,234,567"),
        (share(0.5), "50 %"),
        (share(0.1234), "12.3 %"),
        (share(0.00001), "0.1 %"),
        (share(0.99999), "99.9 %"),
        (share(0), "0 %"),
        (share(1), "100 %"),
        (part(1, 8), "1 (12.5 %)"),
        (part(0, 0), "0"),
        (gib(2**30), "1.00"),
        (gib(80 * 2**30), "80.0"),
        (duration(3725.4), "1:02:05"),
        (plural(1, "row"), "1 row"),
        (plural(2000, "row"), "2,000 rows"),
    ],
)
def test_words(text, expected):
    assert text == expected
