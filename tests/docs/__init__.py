"""Generates the parts of the READMEs that repeat the code: tables of flags, and the tree.

    minimind.config, minimind.plan, docstrings -> tables.py, tree.py -> Markdown
    Markdown -> pages.py -> the READMEs, between `<!-- generated: NAME -->` and `<!-- end -->`

`python -m tests.docs` (or `make docs`) writes the parts; `tests/unit/test_readme.py` fails where they are out of date.
The Chinese READMEs take their texts from `chinese.json`.
"""
