"""What all training runs share: inputs, steps, checkpoints, logs, stopping and resuming.

`initial` makes the model that a run starts from, `inputs` its data; `activation_cache` keeps the
activations of frozen blocks on disk (the activation cache). `loop` runs the steps of `step`, with
the optimiser of `optim`. `objective` is where `--lambda` acts: the loss `lambda * mse +
bits_per_element`. `checkpoint`, `run_record` and `log` write the work folder;
`pictures` and `summary` show results; `processes` and `stop` handle many processes and signals.
"""
