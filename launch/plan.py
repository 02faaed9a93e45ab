"""Plans a run: `python launch/plan.py --hidden_size 4096 --gpus_per_node 8 --gpu_memory 80GiB`; see also `--help`."""

from minimind.plan.command import main

if __name__ == "__main__":
    main()
