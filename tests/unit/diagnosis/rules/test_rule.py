"""A rule says what its judge has seen, and keeps the numbers."""

from __future__ import annotations

from minimind.diagnosis.rules.rule import Seen, rule
from tests.unit.diagnosis.made import curves


def test_a_finding_has_the_words_and_the_numbers():
    @rule("cold", title="it is cold", text="{degrees:.1f} degrees", remedy="wear {coats:.0f} coats")
    def cold(run):
        return Seen(step=run.total_steps, values={"degrees": -3, "coats": 2})

    finding = cold(curves(total_steps=7))
    assert str(finding) == "-3.0 degrees (step 7): wear 2 coats"
    assert (finding.rule, finding.form, finding.values) == ("cold", "", {"degrees": -3, "coats": 2})
    assert (cold.name, cold.title, cold.texts) == ("cold", "it is cold", {"": "{degrees:.1f} degrees"})


def test_a_rule_may_say_it_in_several_forms():
    @rule("sky", title="the sky", text={"day": "blue", "night": "black"}, remedy="look up")
    def sky(run):
        return Seen(step=1, values={}, form="night") if run.log_ratios else None

    assert (sky(curves()).text, sky(curves()).form) == ("black", "night")
    assert sky(curves(log_ratios=False)) is None
