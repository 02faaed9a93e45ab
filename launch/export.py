"""Exports trained weights: `python launch/export.py out/dpo --to qwen3 --out out/qwen3`; see also `--help`."""

from minimind.conversion.command import main

if __name__ == "__main__":
    main()
