"""A model that answers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from minimind import demo, save_weights
from minimind.chat.conversation import Conversation
from minimind.chat.speaker import Speaker, open_device, open_model
from minimind.conversion.flags import ComputeFlags
from minimind.errors import ConfigError
from minimind.generation.decoding import Decoding
from tests.unit.conversion.made import made

CPU = ComputeFlags(tokenizer_path=str(demo.TOKENIZER_PATH), device="cpu")


@pytest.fixture(scope="module")
def opened():
    return open_model(demo.WEIGHT_PATH, {}, CPU)


def speaker(opened, decoding, seed=1):
    return Speaker("demo", opened[1], opened[2], decoding, seed, lambda tokenizer, room: Conversation(tokenizer, room))


def test_an_answer_knows_the_turns_before(opened):
    talk = speaker(opened, Decoding(max_new_tokens=24))
    first = talk.answer("What do horses eat?")
    assert first.text
    assert talk.answer("What do horses eat?") == first
    talk.remember("What do horses eat?", first)
    assert first.text in opened[2].decode(talk.conversation.prompt("Hi"))
    assert talk.conversation.prompt("And cows?") == talk.conversation.prompt("And cows?")
    again = speaker(opened, Decoding(max_new_tokens=24))
    assert again.answer("What do horses eat?") == first


def test_samples_repeat_with_their_seed_and_differ_between_turns(opened):
    decoding = Decoding(max_new_tokens=12, temperature=3.0)

    def answers(seed):
        talk = speaker(opened, decoding, seed)
        found = talk.answer("Hi")
        talk.remember("Hi", found)
        talk.conversation.clear()
        return [found.ids, talk.answer("Hi").ids]

    assert answers(1) == answers(1)
    assert answers(1)[0] != answers(1)[1]
    assert answers(1)[1] == answers(2)[0]


def test_dtype_and_weights_are_as_asked(opened):
    assert opened[1].dtype == torch.float32
    assert open_model(demo.WEIGHT_PATH, {}, dataclasses.replace(CPU, dtype="bfloat16"))[1].dtype == torch.bfloat16
    scaled = open_model(demo.WEIGHT_PATH, {"inference_rope_scaling": True}, CPU)[1]
    assert scaled.config.yarn is not None


def test_what_cannot_answer_is_refused(opened, tmp_path):
    with pytest.raises(ConfigError, match="--max_new_tokens 32768: demo has a context of 32768"):
        speaker(opened, Decoding(max_new_tokens=32768))
    save_weights(made(vocab_size=61), tmp_path / "small.pth")
    with pytest.raises(ConfigError, match="the tokenizer has 6400 tokens, and the model 61"):
        open_model(tmp_path / "small.pth", {}, CPU)
    with pytest.raises(ConfigError, match="has no tokenizer"):
        open_model(tmp_path / "small.pth", {}, ComputeFlags(device="cpu"))


def test_a_device_that_is_not_there_is_an_error():
    assert open_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="--device nonsense"):
        open_device("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="--device cuda"):
            open_device("cuda")
