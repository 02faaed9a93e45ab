"""Evaluates trained weights by lm-eval: `python launch/evaluate.py out/dpo`; see also `--help`."""

from minimind.evaluation.command import main

if __name__ == "__main__":
    main()
