"""Looks at the data of a run before it starts, and prepares them for it.

    flags of training -> command.py -> splitting.py (--eval_share) -> loading.py: the run's own tables
    tables -> pairs.py   -> lengths.py, equal_pairs.py  -+
           -> rows.py, packing.py, cost.py              -+-> report.py -> console.py, page.py, report.json
           -> texts.py   -> answers.py                  -+   ^ building.py, findings.py
    job -> items.py: what the items are called, and which of these statistics they have

A statistic is a pure function of arrays or texts with a frozen data class as its result. Whole tables are read by
numpy; texts are decoded for a sample only, so that memory does not grow with the files.
"""
