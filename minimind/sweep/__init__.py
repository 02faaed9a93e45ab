"""A sweep: one command that trains every combination of several values of flags, one run after the other.

    argv -> flags.py -> plan.py -> RunPlan of each combination -> execute.py (deepspeed launcher) -> run's folder
    runs' folders -> results.py -> table.py (console, sweep.json, sweep.csv), plot.py (sweep.svg), hparams.py

Every run is the script of its job in a folder of its own; the sweep itself computes nothing.
"""
