"""The dense layer, with a gradient that XLA's CPU compiler turns into plain matrix products."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FLOAT32 = "float32"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "... i"], kernel: Float[Array, "i o"], precision: str = FLOAT32
) -> Float[Array, "... o"]:
    """`x @ kernel`."""
    return jnp.matmul(x, kernel, precision=precision)


def _backward(
    precision: str, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # Without a barrier, XLA fuses the computation of the operands into the product and repeats it
    # for every block. Each operand has its own barrier, so that a result that is not used (a frozen
    # kernel's gradient) is still dropped.
    grad = jax.lax.optimization_barrier(grad.reshape(-1, grad.shape[-1]))
    flat = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]))
    matmul = functools.partial(jnp.matmul, precision=precision)
    return matmul(grad, kernel.T).reshape(x.shape), matmul(flat.T, grad)


product.defvjp(lambda x, kernel, how: (product(x, kernel, how), (x, kernel)), _backward)


class Dense(nn.Module):
    """`flax.linen.Dense` with `product`; parameters are float32.

    With the precision "bfloat16" operands and result are bfloat16, otherwise float32.
    """

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    precision: str = FLOAT32

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:  # noqa: D102
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        dtype = jnp.bfloat16 if self.precision == "bfloat16" else jnp.float32
        y: Any = product(x.astype(dtype), kernel.astype(dtype), self.precision)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(dtype)
        return y
