"""Every template of the report has its Chinese, with the same places for values."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from minimind.data.scripts import SCRIPTS
from minimind.diagnosis import metric_charts, pair_sections, sections, texts
from minimind.diagnosis.guard import RULES
from minimind.diagnosis.language import Language

FOLDER = Path(sections.__file__).parent
CHINESE = json.loads((FOLDER / "chinese.json").read_text(encoding="utf-8"))


def templates() -> set[str]:
    found = {chart.title for chart in metric_charts.CHARTS}
    found |= {text for rule in RULES for text in (rule.title, *rule.texts.values(), rule.remedy)}
    found |= {*SCRIPTS, texts.GONE, texts.CHANGED, texts.UNREADABLE, *pair_sections._GROUPS.values()}
    found |= {text for both in pair_sections._LISTS.values() for text in both}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                continue
            named = isinstance(node.func, ast.Name) and node.func.id in ("say", "titled")
            spoken = isinstance(node.func, ast.Call) and getattr(node.func.func, "id", "") == "Language"
            if named or spoken:
                found.add(node.args[0].value)
    return found


def test_all_templates_are_translated_and_no_other():
    assert templates() == set(CHINESE)


@pytest.mark.parametrize("template", sorted(CHINESE))
def test_a_translation_has_the_same_values(template):
    assert sorted(re.findall(r"{[^}]*}", template)) == sorted(re.findall(r"{[^}]*}", CHINESE[template]))


def test_a_template_is_said_in_both_languages():
    assert Language("en")("{source}, line {line}", source="a.jsonl", line=3) == "a.jsonl, line 3"
    assert Language("zh")("{source}, line {line}", source="a.jsonl", line=3) == "a.jsonl，第 3 行"
    with pytest.raises(KeyError):
        Language("zh")("not translated")
