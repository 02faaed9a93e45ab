"""Looks at data before a run: `python launch/prepare_data.py --data_path pairs.jsonl ...`; see also `--help`."""

from minimind.inspection.command import main

if __name__ == "__main__":
    main()
