"""Recipes of small streams for tests: texts in files, shards of a few rows."""

from __future__ import annotations

import json
from fractions import Fraction

from minimind.data.encoder import build_encoder
from minimind.data.encoding import EncodingOptions
from minimind.data.pairs import LengthLimit
from minimind.data.shapes import Items, ShapeOptions
from minimind.data.sources import open_source
from minimind.data.streaming.builder import Recipe, WordRecipe
from minimind.data.streaming.order import Word
from minimind.data.streaming.shards import Policies

MAX_LENGTH = 32


def write_texts(path, first, number):
    """A file of texts with numbers, which tell them apart."""
    rows = (json.dumps({"text": f"Text {first + place} of the tests."}) + "\n" for place in range(number))
    path.write_text("".join(rows))
    return path


def recipe_of(tokenizer, cache, *words, weights=None, **changes):
    """A recipe whose words are lists of files."""
    made = []
    for place, paths in enumerate(words):
        sources = tuple(map(open_source, paths))
        weight = Fraction((weights or {}).get(place, 1))
        word = Word(name=f"word {place}", bytes=sum(source.size for source in sources), weight=weight)
        shapes = (ShapeOptions(items=Items.TEXTS),) * len(sources)
        made.append(WordRecipe(word=word, folder=cache / f"stream-{place}", sources=sources, shapes=shapes))
    settings = {
        "shard_tokens": 60,
        "window_tokens": 150,
        "seed": 7,
        "rows": 30,
        "keep_windows": None,
        "behind": 0,
        "num_workers": 0,
        "run": "mine",
    }
    return Recipe(
        words=tuple(made),
        encoder=build_encoder(tokenizer, EncodingOptions(mask="text")),
        limit=LengthLimit(max_length=MAX_LENGTH, cut_prompt=False, long_text="split"),
        policies=Policies(on_bad_row="skip", on_long_row="split"),
        **{**settings, **changes},
    )
