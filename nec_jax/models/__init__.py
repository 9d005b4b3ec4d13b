"""The model: encoder, bottleneck and decoder, their weights, and which of them train."""
