"""Pretrains: `deepspeed launch/pretrain.py --deepspeed ds_configs/zero2.json --data_path FILE`; see also `--help`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While the libraries load, a Ctrl-C ends the process without a traceback; later the run handles it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# Processes that tokenise read this file too, and need none of it.
if __name__ == "__main__":
    from minimind.config import PretrainConfig
    from minimind.training.run import main

    main(job=PretrainConfig)
