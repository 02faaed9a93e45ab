"""Curves and findings, as rules read and write them."""

from __future__ import annotations

from minimind.diagnosis.curves import Curves, Finding, Point


def test_a_curve_has_the_points_with_its_metric():
    logs = [Point(step=1, metrics={"loss": 0.7}), Point(step=2, metrics={}), Point(step=3, metrics={"loss": 0.5})]
    curves = Curves(logs=logs, evaluations=logs[:1], total_steps=3)
    assert curves.logged("loss") == [(1, 0.7), (3, 0.5)]
    assert curves.evaluated("loss") == [(1, 0.7)]
    assert curves.evaluated("nll") == []


def test_the_last_evaluation_has_all_of_the_metrics_or_counts_for_nothing():
    points = [Point(step=1, metrics={"loss": 0.7, "nll": 1.0}), Point(step=2, metrics={"loss": 0.5})]
    assert Curves(logs=(), evaluations=points, total_steps=3).latest("loss") == (2, [0.5])
    assert Curves(logs=(), evaluations=points, total_steps=3).latest("loss", "nll") is None
    assert Curves(logs=(), evaluations=points[:1], total_steps=3).latest("nll", "loss") == (1, [1.0, 0.7])
    assert Curves(logs=points, total_steps=3).latest("loss") is None


def test_a_finding_is_one_line():
    finding = Finding(rule="length", step=40, text="longer answers win", remedy="try --loss rdpo")
    assert str(finding) == "longer answers win (step 40): try --loss rdpo"
