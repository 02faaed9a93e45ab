"""Rules about weights, each on made curves that show the failure, and on ones that do not."""

from __future__ import annotations

from minimind.diagnosis.rules import weights as rules
from minimind.diagnosis.rules.weights import DEAD, EXPECTED, FLOAT32, MOVED
from tests.unit.diagnosis.made import made, points

BFLOAT16, FLOAT16 = f"{MOVED}bfloat16", f"{MOVED}float16"


def test_experts_that_get_no_tokens():
    finding = rules.dead_experts(made(logged={DEAD: [0.5, 0, 0, 0.125, 0.125, 0.25]}))
    assert finding is not None
    assert str(finding) == (
        "25.0% of the experts have got no token in 3 logged windows, where an expert gets 2,000 on average (step 500): "
        "raise --router_aux_loss_coef, or lower --learning_rate"
    )
    # Not in three windows in a row, or windows so short that an expert may be left out by chance.
    assert rules.dead_experts(made(logged={DEAD: [0.5, 0.5, 0.5, 0, 0.125, 0.125]})) is None
    assert rules.dead_experts(made(logged={DEAD: 0.125, EXPECTED: [20, 2000, 2000, 2000, 99, 2000]})) is None
    assert rules.dead_experts(made(logged={DEAD: [0.125, 0.125], EXPECTED: 2000})) is None


def test_updates_that_the_written_files_have_lost():
    finding = rules.lost_updates(made(saved={BFLOAT16: [0, 0.099], FLOAT16: [0, 0.792]}))
    assert finding is not None
    assert str(finding) == (
        "the written weights keep few of the changes of training: bfloat16 10% of the weights that have changed (step "
        "500): launch/export.py --dtype float32 writes them from the checkpoint; or a higher --learning_rate"
    )
    both = rules.lost_updates(made(saved={BFLOAT16: 0.01, FLOAT16: 0.2}))
    assert both is not None
    assert ": bfloat16 1%, float16 20% of the weights" in both.text
    # The first quarter of a run, in which weights have hardly moved; files in float32; weights that all stay.
    assert rules.lost_updates(made(saves=points((100,), **{FLOAT32: [0.9], BFLOAT16: [0.01]}))) is None
    assert rules.lost_updates(made(saves=points((500,), **{FLOAT32: [0.9]}))) is None
    assert rules.lost_updates(made(saved={FLOAT32: 0, BFLOAT16: 0, FLOAT16: 0})) is None
    # A model of which half is frozen: what has changed is kept.
    assert rules.lost_updates(made(saved={FLOAT32: 0.4, BFLOAT16: 0.3, FLOAT16: 0.39})) is None
