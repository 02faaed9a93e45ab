"""Samples: their lines, and the answers before the first step of a run that is resumed."""

from __future__ import annotations

import json

from minimind.training.samples import SAMPLES_FILE, Sample, SamplePrompt, read_start


def prompt(text, place="a, line 1"):
    return SamplePrompt(ids=(1, 2), text=text, expected="Yes.", place=place)


def test_a_line_has_all_texts():
    sample = Sample(prompt=prompt("Is it?"), start=None, answer="It is.", ids=(5, 6, 2), ended=True)
    assert sample.entry(4) == {
        "step": 4,
        "prompt": "Is it?",
        "expected": "Yes.",
        "start": None,
        "answer": "It is.",
        "tokens": 3,
        "ended": True,
        "place": "a, line 1",
    }


def test_answers_before_the_first_step_are_read_back(tmp_path):
    prompts = [prompt("one"), prompt("two\u2028lines", "a, line 2"), prompt("new", "a, line 3")]
    assert read_start(tmp_path, prompts) == [None] * 3
    entries = [
        Sample(prompt=one, start="x", answer=f"{one.text}!", ids=(2,), ended=True).entry(step)
        for step in (0, 3)
        for one in prompts[:2]
    ]
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    (tmp_path / SAMPLES_FILE).write_text("\n".join([*lines, "[]", '{"step": 0, "pro']), encoding="utf-8")
    assert read_start(tmp_path, prompts) == ["one!", "two\u2028lines!", None]
