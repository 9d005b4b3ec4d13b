"""What can be trained: `pretrain`, `distil` and `compress`, each a command of `train.main`."""
