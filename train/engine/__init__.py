"""What all training runs share: inputs, steps, checkpoints, logs, stopping and resuming.

`initial_model` makes the model that a run starts from, `inputs` opens its data; `activation_cache`
keeps the activations of frozen blocks on disk. `loop` runs the steps of `step`,
which has the optimiser too. `losses` is where `--lambda` acts: the loss `lambda * mse +
bits_per_element`. `checkpoint`, `run_record` and `log` write the work folder; `log` also shows
messages, `run_record` the summary, and `pictures` what TensorBoard draws. `processes` handles many
processes, and the signals that stop them.
"""
