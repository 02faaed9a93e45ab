"""Memory and communication of a run by arithmetic, before anything is allocated and without a GPU or process group.

DeepSpeed file -> choice.py (ZeroChoice) ---+
flags          -> choice.py (StepLoad) -----+-> memory.py, traffic.py -> options.py -> report.py (launch/plan.py)
weights        -> sizes.py (ModelSizes) ----+                                       -> check.py (start of a run)
"""
