"""Task heads applied without JAX: decoded embeddings -> classes of images or of pixels.

```python
head = coder.load_head("head.safetensors")  # of nec_jax.heads.save
predicted = head.predict(y_hat)  # float [N, n, D] -> int32 [N], or [N, H, W] for masks
```

`nec_jax.heads` trains heads and writes their files. Both compute the same: probabilities agree to
1e-5. `task_head` has `Head` and `load_head`, `head_layers` the layers in NumPy. `head_settings` is
what both share: the settings of a head, and the checks of embeddings.
"""

from coder.task_heads.task_head import Head, load_head

__all__ = ["Head", "load_head"]
