"""The table of defaults that follow the model.

model_defaults of each generation and of other models -> default_table -> Markdown
"""

from __future__ import annotations

from minimind.config import model_defaults
from tests.docs.language import Language


def default_table(language: Language) -> list[str]:
    """Lines of Markdown: a line for each setting, a column for each kind of model."""
    kinds = [model_defaults(generation) for generation in (2, 3, None)]
    columns = [{**kind.objective, **kind.data, **kind.sizes} for kind in kinds]
    words = ("setting", "MiniMind generation 2", "MiniMind generation 3", "Hugging Face model")
    lines = [f"| {' | '.join(map(language.of, words))} |", "| --- | --- | --- | --- |"]
    for name in columns[1]:
        values = (int(one[name]) if isinstance(one.get(name), bool) else one.get(name) for one in columns)
        cells = (language.of("read from the weights") if value is None else f"`{value}`" for value in values)
        lines.append(f"| `--{name}` | {' | '.join(cells)} |")
    return lines
