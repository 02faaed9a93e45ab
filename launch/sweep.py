"""Trains each combination of values: `python launch/sweep.py --deepspeed FILE --beta 0.05,0.1 --loss sigmoid,ipo`."""

from minimind.sweep.command import main

if __name__ == "__main__":
    main()
