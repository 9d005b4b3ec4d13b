"""Measurements: `evaluate`, `sweep`, `report` and `compare`, each a command of `train.main`.

`evaluate` codes the images of a `study` by all `methods` (NEC, and the baselines of `baselines` and
`common_baselines`) and measures their `scores`. `sweep` trains and evaluates many points into the
table of `results`. `report`, `curves` and `figure` show them. `compare` reads reports, and
`bootstrap` gives their Bjontegaard deltas with intervals.
"""
