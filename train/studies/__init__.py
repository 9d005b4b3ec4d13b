"""Measurements: `evaluate`, `sweep`, `report` and `compare`, each a command of `nec`.

`evaluate` codes the images of a `study` by all `methods` (NEC, and the baselines of `baselines` and
`common_baselines`) and measures their `scores`. `sweep` trains and evaluates many points into the
table of `results`. `report` writes tables of them, `curves` draws figures. `compare` reads reports
and computes Bjontegaard deltas with bootstrap intervals.
"""
