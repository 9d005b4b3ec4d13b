"""Task heads on decoded embeddings: what a consumer trains (arXiv 2403.17886).

```python
head = heads.fit(params, y_hat, labels, kind="attention", classes=("forest", "water"))
predicted = heads.predict(head, y_hat_of_new_images)
```

| kind           | task           | what it is                                                    |
| -------------- | -------------- | ------------------------------------------------------------- |
| "linear"       | classification | ridge regression on the mean token, in closed form            |
| "class-linear" | classification | ridge regression on class token and mean token together       |
| "attention"    | classification | attention pooling with one latent query, then a linear layer  |
| "token-linear" | segmentation   | ridge regression on each token, in closed form, resized       |
| "conv"         | segmentation   | convolutions on the token grid, two x2 stages, logits resized |

With `with_decoder=True` the embedding passes the first block of the model's decoder before the
head. "attention" and "conv" train that block too; the linear kinds leave it as it is.

Heads take plain decoded embeddings. If the model has a refiner, they refine them first.

`training` has `fit`, with `ridge` for the linear kinds; `inference` has `predict`. `layers` has the
layers, `network` the whole head as functions of its weights, `head` its configuration and weights,
`head_file` its file, and `checks` the checks of arguments.
"""

from coder.task_heads.head_settings import IGNORE, Kind
from nec_jax.heads.head import HeadConfig, HeadParams
from nec_jax.heads.head_file import load, save
from nec_jax.heads.inference import predict, predict_proba
from nec_jax.heads.training import fit

__all__ = [
    "IGNORE",
    "HeadConfig",
    "HeadParams",
    "Kind",
    "fit",
    "load",
    "predict",
    "predict_proba",
    "save",
]
