"""The model: encoder, bottleneck and decoder, their weights, and which of them train.

`nec` puts the model together, from `vit` (blocks and encoder), `mae` (masking and decoder) and
`bottleneck`; `transform_bottleneck` trains through a transform. `density` is the entropy model, the
factorised density. `rounding` has what replaces rounding in training, `freezing` the freezing rule:
which weights train. `architecture` has `ModelConfig`, `weight_tree` the tree of weights,
`dense_layer` the dense layer. Lambda weighs the loss in `train.engine.losses`.
"""
