"""The table of shapes in launch/README.md, whose rows tests read.

launch/README.md -> readme_rows -> --data_format: a row
"""

from __future__ import annotations

import re

from tests.docs.pages import REPO


def readme_rows(suffix: str = "") -> dict[str, str]:
    """Each value of --data_format with the row of the table, as JSON text.

    Args:
        suffix: of the README's name.
    """
    text = (REPO / f"launch/README{suffix}.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `(\w+)` \| `(\{.*?\})` \|", text, re.MULTILINE))
