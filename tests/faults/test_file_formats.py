"""Files that people have given, beside the checkout: each trains, or is refused in words that a person can act on."""

from __future__ import annotations

import re

from minimind.data.selection import select_pairs
from minimind.data.sources import find_sources
from minimind.data.table_cache import load_table
from minimind.errors import DataError

# Of the files that are there now. A new one may have any number of pairs, or a reason.
PAIRS = {
    "array_one_line.json": 2,
    "array_per_line.json": 2,
    "array_pretty.json": 2,
    "gz.jsonl.gz": 1,
    "parts.jsonl": 1,
    "role_developer.jsonl": 1,
    "sharegpt.jsonl": 1,
    "sharegpt_lists.jsonl": 1,
    "strings.jsonl": 1,
    "utf16.jsonl": 1,
}
REASONS = {
    "README": "a table with separators without a row; its first line is taken for the names of columns",
    "parquet.parquet": r"the file is damaged: its footer would have \d+ bytes, and the file has 16",
}
# Words that say what is wrong with a file or a row, or what to do.
TELLING = r"without a row|damaged|incomplete|looks like|unknown row shape|is neither|is not|are not|cannot be read"


def test_each_file_trains_or_is_refused_in_words(shared, tokenizer, tmp_path):
    found: dict[str, int | str] = {}
    for path in sorted((shared / "cases" / "16_file_formats").iterdir()):
        try:
            (source,) = find_sources([str(path)])
            table = load_table(source, tokenizer, max_length=256, num_workers=0, cache_dir=tmp_path)
            table = select_pairs(table, on_bad_row="error", on_long_row="cut")
            found[path.name] = len(table)
            for index in range(len(table)):
                # Both answers count, and they differ.
                pair = table[index]
                assert pair.chosen_mask.any()
                assert pair.rejected_mask.any()
                assert pair.chosen.tolist() != pair.rejected.tolist()
        except DataError as error:
            message = str(error)
            assert message.startswith(f"{path}: ")
            assert re.search(REASONS.get(path.name, TELLING), message), message
            found[path.name] = message
    assert {name: number for name, number in found.items() if name in PAIRS} == PAIRS
    assert all(isinstance(found[name], str) for name in REASONS)
    assert all(isinstance(number, str) or number for number in found.values())
