"""Commands that need no JAX."""
