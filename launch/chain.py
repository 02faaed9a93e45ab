"""Pretrains, fine-tunes and aligns a new small model: `python launch/chain.py`; see also `--help`."""

from minimind.chain.command import main

if __name__ == "__main__":
    main()
