"""The kinds of training: `pretrain`, `distil`, `compress` and `refine`, each a command of `nec`;
and `describe`, which says what `compress` would cost.

`pretrain` trains a masked autoencoder, or a decoder. `distil` trains an encoder on the tokens that
`teacher` computes. `compress` adapts a model to its rate-distortion loss and gives it a codec;
`first_density` chooses the gains and fits the densities that it starts from. `refine` trains a
refiner for a model's codec. What all of them share is in `train.engine`; `--lambda` acts in
`train.engine.losses`.
"""
