"""Looks at data before a run: `python launch/prepare_data.py --data_path pairs.jsonl ...`; see also `--help`."""

# Processes that tokenise read this file too, and need none of it.
if __name__ == "__main__":
    from minimind.inspection.command import main

    main()
