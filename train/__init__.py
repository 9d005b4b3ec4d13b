"""Training and experiments: `python -m train.main`.

`tasks` has a module per kind of training, `studies` one per kind of measurement; `engine` has what
all training runs share, `data` reads images, and `configs` holds options and experiments.
"""
