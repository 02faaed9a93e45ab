"""Trains by DPO: `deepspeed launch/train_dpo.py --deepspeed ds_configs/zero2.json`; `--help` lists every flag."""

from minimind.training.run import main

if __name__ == "__main__":
    main()
