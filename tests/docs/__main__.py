"""Writes the generated parts of all READMEs: `python -m tests.docs`."""

from __future__ import annotations

from tests.docs.language import chinese
from tests.docs.losses import texts as loss_texts
from tests.docs.models import reasons
from tests.docs.pages import REPO, pages, regenerate
from tests.docs.tables import every_flag
from tests.docs.tree import descriptions


def main() -> None:
    """Write the READMEs, and list the texts that `chinese.json` lacks and those that it no longer needs."""
    for page, language in pages():
        old = page.read_text(encoding="utf-8")
        new = regenerate(old, language)
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(f"written: {page.relative_to(REPO)}")
    flags = (flag.help for flag in every_flag())
    texts = [*flags, *descriptions().values(), *reasons(), *loss_texts()]
    for text in chinese().missing(texts):
        print(f"chinese.json lacks: {text}")
    for text in chinese().unused(texts):
        print(f"chinese.json no longer needs: {text}")


if __name__ == "__main__":
    main()
