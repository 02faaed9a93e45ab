"""Files of samples: lines, a table that shows texts as they are, and a few answers at the end."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from minimind.training.events import End, Sampled
from minimind.training.listeners.sample_files import SampleFiles, markdown_table
from minimind.training.samples import Sample, SamplePrompt


def sample(text="Is it?", *, answer="It is.", start="No.", ended=True, expected="Yes."):
    prompt = SamplePrompt(ids=(1,), text=text, expected=expected, place="a, line 1")
    return Sample(prompt=prompt, start=start, answer=answer, ids=(5, 2), ended=ended)


@pytest.fixture
def made(tmp_path):
    texts, printed, news = [], [], []
    monitor = SimpleNamespace(write_summaries=lambda found, step: texts.append((found, step)), news=lambda: news)
    console = SimpleNamespace(say=printed.append)
    listener = SampleFiles(folder=tmp_path, monitor=monitor, on_board=True, console=console)
    return SimpleNamespace(listener=listener, texts=texts, printed=printed, news=news, path=tmp_path / "samples.jsonl")


def test_every_answer_is_a_line_and_every_sampling_a_table(made):
    for step in (0, 2):
        made.listener.on_sampled(Sampled(step=step, metrics={}, samples=[sample("你好"), sample("\ud800")]))
    lines = [json.loads(line) for line in made.path.read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == [(0, "你好"), (0, "?"), (2, "你好"), (2, "?")]
    assert [(one.value[0].tag.split("/")[0], step) for (one,), step in made.texts] == [("samples", 0), ("samples", 2)]
    assert "| 你好 | Yes. | No. | It is. |" in made.texts[0][0][0].value[0].tensor.string_val[0].decode()


def test_a_table_shows_texts_as_they_are():
    table = markdown_table([sample("a|b\nc <b>", answer="`x` & y", ended=False, start=None)]).splitlines()
    assert table[0] == "| prompt | answer in the data | before training | now |"
    assert table[2] == "| a\\|b<br>c &lt;b&gt; | Yes. |  | &#96;x&#96; &amp; y … |"
    (long,) = markdown_table([sample("word " * 500)]).splitlines()[2:]
    assert len(long) < 700
    assert len(markdown_table([sample()] * 50).splitlines()) == 2 + 32


def test_a_finished_run_shows_a_few(made):
    made.listener.on_end(End(step=0, finished=True))
    assert made.printed == []
    made.listener.on_sampled(Sampled(step=2, metrics={}, samples=[sample("Is\nit?", answer="w " * 500)] * 9))
    made.listener.on_end(End(step=2, finished=False, reason="SIGTERM"))
    assert made.printed == []
    made.listener.on_end(End(step=2, finished=True))
    assert made.printed[0] == "\nAnswers, before and after training:"
    assert len(made.printed) == 1 + 4
    assert made.printed[1].startswith("\n  Is it?\n    before  No.\n    after   w w ")
    assert len(made.printed[1]) < 250


def test_what_cannot_be_written_is_said(made):
    made.path.mkdir()
    made.news.append("NOT LOGGED: TensorBoard")
    made.listener.on_sampled(Sampled(step=2, metrics={}, samples=[sample()]))
    assert made.printed[0].startswith("NOT LOGGED: samples.jsonl: ")
    assert made.printed[1] == "NOT LOGGED: TensorBoard"
