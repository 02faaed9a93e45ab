"""Reports on runs: `python launch/report.py out/dpo` writes report.html; see also `--help`."""

from minimind.diagnosis.command import main

if __name__ == "__main__":
    main()
