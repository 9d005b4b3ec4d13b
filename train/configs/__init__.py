"""Experiments: one file each, whose docstring holds the command and what to expect."""
