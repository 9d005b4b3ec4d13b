"""Training and experiments: `python -m train.main`."""
