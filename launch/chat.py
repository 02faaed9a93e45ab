"""Talks with trained weights: `python launch/chat.py out/dpo`; see also `--help`."""

from minimind.chat.command import main

if __name__ == "__main__":
    main()
