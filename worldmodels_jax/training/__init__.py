"""The online loops, checkpoints, metrics and runs; `run.train` and `run.load` are the doors."""
