"""The dense layer, with a gradient that XLA's CPU compiler turns into plain matrix products."""

import flax.linen as nn
import jax


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., I] times kernel [I, O]: `x @ kernel`."""
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _backward(
    residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # Left to itself, XLA fuses what makes the operands into them and computes it again for every
    # block of the product. Each operand has a barrier of its own, so that what is not asked for
    # (a frozen kernel's gradient) is still dropped.
    grad = jax.lax.optimization_barrier(grad.reshape(-1, grad.shape[-1]))
    flat = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]))
    return (grad @ kernel.T).reshape(x.shape), flat.T @ grad


product.defvjp(_forward, _backward)


class Dense(nn.Module):
    """`flax.linen.Dense` on float32, with `product`."""

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = product(x, kernel)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))
        return y
