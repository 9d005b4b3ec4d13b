"""What every training run does: inputs, steps, checkpoints, logs, and how it stops and goes on."""
