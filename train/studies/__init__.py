"""Measuring: `evaluate`, `sweep`, `report` and `compare`, each a command of `train.main`."""
