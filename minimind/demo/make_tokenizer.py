"""Writes the demo's tokenizer: `python -m minimind.demo.make_tokenizer [--out DIR]`.

    sentences, facts, characters, numbers, words -> byte-level BPE of 6400 tokens -> tokenizer/

Size, special tokens with their ids, and the markers around a turn are those of MiniMind's tokenizer. The demo's
sentences need only a part of the 6400 tokens. Characters of the Chinese standard GB 2312, numbers and composed English
words give the rest, so that other text is not split into single bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minimind.demo.make_data import SEED, make_pairs, split_cases

VOCAB_SIZE = 6400
# In the order of their ids: 0, 1, 2.
PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# Number of repetitions of a text in the corpus. Facts and roles have the largest weight, so that no token crosses their
# borders ("法国" and "的", never "国的"). The weight of common characters is enough to make each of them one token.
_FACT_WEIGHT, _CHARACTER_WEIGHT = 500, 20
# In bytes: four Chinese characters, or an English word of eleven letters with a space.
_MAX_TOKEN_LENGTH = 12

# A turn is `<|im_start|>ROLE\nCONTENT<|im_end|>\n`. The system turn lists the tools. Results of tools are written as a
# user turn; consecutive results share one turn.
CHAT_TEMPLATE = """\
{%- set ns = namespace(system='', first=0) %}
{%- if messages and messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content %}
    {%- set ns.first = 1 %}
{%- endif %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- ns.system + '\\n\\n' if ns.system }}
    {{- 'These functions can be called, one JSON object a line:\\n<tools>\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson + '\\n' }}
    {%- endfor %}
    {{- '</tools>\\n' }}
    {{- 'A call is written as <tool_call>{"name": ..., "arguments": {...}}</tool_call><|im_end|>\\n' }}
{%- elif ns.first %}
    {{- '<|im_start|>system\\n' + ns.system + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages[ns.first:] %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message.role in ('system', 'user', 'assistant') %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function or call %}
            {{- '\\n' if message.content or not loop.first }}
            {%- set arguments = function.arguments %}
            {{- '<tool_call>{"name": ' + function.name | tojson + ', "arguments": ' }}
            {{- (arguments if arguments is string else arguments | tojson) + '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('unknown role ' + message.role + ': use system, user, assistant or tool') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_PREFIXES = ("", "re", "un", "out", "over", "under", "inter")
_ROOTS = """
    act add air arm art ask back ball band bank base bear beat bed bell bird blow board boat body book
    bound box brand bread break bridge bring build burn call camp care carry case cast catch cause chain
    change charge cheer child claim class clean clear climb close cloud coach coat colour comfort cook
    corn count cover craft cross dance dark date deal dear deep draw dream dress drink drive drop dry
    earth east end even face fact fair fall farm fast feed feel field fill film find fire fish flat float
    floor flow fly fold follow food foot force form frame free fresh friend front fruit full game garden
    gate give glass gold good grain grand grass great green ground group grow guard guess guide hand hard
    head hear heart heat help hill hold home hope horse hour house hunt ice ink join joy judge jump just
    keep kind king kiss know lake land large last late law lead learn leave level life lift light like
    line list listen live load lock long look love low luck make map mark market master match matter meal
    mean meet mile milk mind mix month moon morning mother mount move music name near neck need nest night
    note number ocean offer office open order own page paint paper part pass path pay peace people pick
    picture place plain plan plant play point port post power press price print prove pull pure push
    question quick quiet rain reach read real rest rice rich ride right ring rise river road rock roof
    room round rule sail salt sand save say school sea season seat see seed sell send sense serve set
    shade shape share ship shop short show side sign silver simple sing sister sit size skill sky sleep
    small smile snow soft song sound south space speak spring stand star start state stay steel step stone
    stop store storm story street string strong student study sugar summer sun sure sweet swim table talk
    task taste teach team tell thank thing think throw time top touch tour tower town track trade train
    travel treat tree trip true trust turn type use value view visit voice wait walk wall want warm wash
    watch water way wear week west wheel white wide wild win wind window wing winter wish wonder wood word
    work world write year young
"""
_SUFFIXES = ("", "s", "ed", "er", "ing", "ly", "ness", "ful", "less", "able")


def corpus() -> Iterator[str]:
    """The training text of the tokenizer; each text is repeated according to its weight."""
    cases = split_cases()
    facts = [text for case in cases.train for text in (case.fact.asked, case.fact.answer)]
    for text in (*facts, "system", "user", "assistant"):
        # English words occur both after a space and without one, and are different tokens then.
        yield from itertools.repeat(f"{text}\n {text}" if text.isascii() else text, _FACT_WEIGHT)
    for character in _common_characters():
        yield from itertools.repeat(character, _CHARACTER_WEIGHT)
    for pair in make_pairs(cases.train, cases.train, SEED):
        for message in pair["chosen"] + pair["rejected"][-1:]:
            yield message["content"]
    yield from map(str, range(1000))
    yield from _composed_words()


def _common_characters() -> Iterator[str]:
    """The 3755 characters of level 1 of GB 2312 (rows 16 to 55), the ones in everyday use."""
    for row, cell in itertools.product(range(0xB0, 0xD8), range(0xA1, 0xFF)):
        yield bytes((row, cell)).decode("gb2312", errors="ignore")


def _composed_words() -> Iterator[str]:
    """English-looking words: a root, sometimes with a prefix or a suffix."""
    for prefix, root, suffix in itertools.product(_PREFIXES, _ROOTS.split(), _SUFFIXES):
        if not (prefix and suffix):
            yield f" {prefix}{root}{suffix}"


def train_tokenizer() -> Tokenizer:
    """Train a byte-level BPE tokenizer with exactly `VOCAB_SIZE` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_MAX_TOKEN_LENGTH,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, "the corpus is too small for the vocabulary"
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """Contents of tokenizer_config.json for transformers."""
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "bos_token": BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": 32768,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": PAD,
    }


def main() -> None:
    """Write tokenizer/."""
    parser = argparse.ArgumentParser(description="Make the demo's tokenizer.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write tokenizer/ into")
    folder: Path = parser.parse_args().out / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer().save(str(folder / "tokenizer.json"))
    config = json.dumps(tokenizer_config(), ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
