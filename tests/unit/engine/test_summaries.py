"""Summaries as TensorBoard's plugins read them, and the groups of its curves."""

from __future__ import annotations

import numpy as np
import pytest
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from minimind.engine import summaries
from minimind.engine.summaries import tag_of


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("loss", "train/loss"),
        ("dpo_loss", "train/dpo_loss"),
        ("grad_norm", "optimizer/grad_norm"),
        ("pairs_per_second", "speed/pairs_per_second"),
        ("tokens_per_second_per_rank", "speed/tokens_per_second_per_rank"),
        ("peak_memory_gib", "memory/peak_memory_gib"),
        ("rewards/margins", "rewards/margins"),
        ("eval/zh/loss", "eval/zh/loss"),
    ],
)
def test_every_curve_has_a_group(name, tag):
    assert tag_of(name) == tag


def test_a_table_keeps_its_cells():
    lines = summaries.table(("a", "b"), [("x|y", "two\nlines"), (1, None)]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", "| x\\|y | two<br>lines |", "| 1 | None |"]


def test_a_histogram_is_of_the_finite_values():
    (value,) = summaries.histogram("margins", np.array([0.0, 1.0, np.nan, np.inf, 3.0])).value
    assert (value.tag, value.histo.min, value.histo.max, value.histo.num) == ("margins", 0, 3, 3)
    assert summaries.histogram("margins", np.array([np.nan])) is None


def content(summary):
    return HParamsPluginData.FromString(summary.value[0].metadata.plugin_data.content)


def test_settings_are_numbers_and_words():
    values = {"beta": 0.1, "merge": True, "data_path": ("a.jsonl", "b.jsonl"), "loss": "ipo", "limit": None, "x": ()}
    found = content(summaries.session_start(values)).session_start_info.hparams
    assert set(found) == {"beta", "merge", "data_path", "loss"}
    assert (found["beta"].number_value, found["merge"].number_value) == (0.1, 1.0)
    assert (found["data_path"].string_value, found["loss"].string_value) == ("a.jsonl b.jsonl", "ipo")
    assert content(summaries.session_end()).session_end_info.status == Status.Value("STATUS_SUCCESS")


def test_a_chart_has_exactly_its_tags():
    (value,) = summaries.layout({"Is it learning?": {"loss": ("train/loss", "eval/loss")}}).value
    (category,) = Layout.FromString(value.tensor.string_val[0]).category
    (chart,) = category.chart
    assert (category.title, chart.title) == ("Is it learning?", "loss")
    assert list(chart.multiline.tag) == ["^train/loss$", "^eval/loss$"]
