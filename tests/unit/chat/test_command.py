"""The chatting script as a user calls it."""

from __future__ import annotations

import io

import pytest

from minimind import demo
from minimind.chat.command import ChatFlags, chat, decoding_of, main
from minimind.errors import ConfigError

START = [str(demo.WEIGHT_PATH), "--tokenizer_path", str(demo.TOKENIZER_PATH), "--max_new_tokens", "24"]


def test_one_prompt_is_answered_and_nothing_else_is_printed(capsys):
    answers = []
    for _ in range(2):
        chat([*START, "--prompt", "What do horses eat?", "--greedy", "1"])
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert len(answers[0].splitlines()) == 1
    assert len(answers[0]) > 10


def test_a_pipe_is_a_conversation(capsys, monkeypatch):
    lines = io.TextIOWrapper(io.BytesIO("What do horses eat?\n五月\n".encode() + b"\xff\n/quit\nnever read\n"))
    monkeypatch.setattr("sys.stdin", lines)
    chat([*START, "--greedy", "1"])
    printed = capsys.readouterr()
    assert printed.out.count("> ") == 4
    assert "never read" not in printed.out
    assert "(pth)" in printed.err


def test_two_models_get_the_same_prompt(capsys):
    chat([*START, "--prompt", "Hi", "--compare", str(demo.WEIGHT_PATH), "--seed", "3"])
    printed = capsys.readouterr().out
    first, second = printed.split(f"[{demo.WEIGHT_PATH}]\n")[1:]
    assert first.strip() == second.strip()


def test_flags_decide_how_answers_are_decoded():
    assert decoding_of(ChatFlags()).temperature == 0.85
    assert decoding_of(ChatFlags(greedy=True)).temperature == 0
    assert decoding_of(ChatFlags(top_k=5, repetition_penalty=1.1)).top_k == 5
    with pytest.raises(ConfigError, match=r"--top_p 1\.5 is above 1"):
        decoding_of(ChatFlags(top_p=1.5))


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["missing"], "WeightsError: missing: no such file or folder"),
        (
            [*START, "--thinking", "1", "--prompt", "x"],
            "ConfigError: --thinking 1: the chat template knows no thinking",
        ),
        ([*START, "--compare", "missing"], "WeightsError: missing"),
        ([*START, "--temprature", "1"], "ConfigError: unrecognized argument: --temprature; did you mean --temperature"),
    ],
)
def test_an_error_of_the_user_is_one_line(argv, problem):
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert str(raised.value).startswith(problem)
