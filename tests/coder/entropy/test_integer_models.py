"""constriction codes exactly the integer weights that it is given."""

import numpy as np
from block_cases import random_table
from reference_ans import integer_ans, uniform

from coder.entropy.integer_models import TABLE_EACH, UNIFORM, AnsCoder, model


def test_constriction_uses_exactly_the_integers():
    rng = np.random.default_rng(0)
    for size in [*range(2, 300), *rng.integers(300, 5000, 30), 5000, 1 << 16]:
        weights = random_table(rng, size)
        # Evenly, so that rare weights are met.
        symbols = rng.integers(0, size, 12, dtype=np.int32)
        expected = integer_ans([(weights, s) for s in reversed(symbols.tolist())])
        cached, each = AnsCoder(), AnsCoder()
        cached.encode_reverse(symbols, model(weights))
        assert cached.get_compressed().tolist() == expected, size
        assert cached.decode(model(weights), 12).tolist() == symbols.tolist()
        tables = np.repeat(weights[None] - 1.0, 12, axis=0)
        each.encode_reverse(symbols, TABLE_EACH, tables)
        assert each.get_compressed().tolist() == expected, size
        assert each.decode(TABLE_EACH, tables).tolist() == symbols.tolist()


def test_constrictions_uniform_model_is_the_documented_one():
    rng = np.random.default_rng(1)
    for n in [*range(2, 60), *(1 << k for k in range(6, 14)), 4368, 8008, 11440, 12870]:
        symbols = np.append(rng.integers(0, n, 10), [0, n - 1]).astype(np.int32)
        ans = AnsCoder()
        ans.encode_reverse(symbols, UNIFORM, np.full(12, n, np.int32))
        weights = uniform(n)
        assert ans.get_compressed().tolist() == integer_ans(
            [(weights, s) for s in reversed(symbols.tolist())]
        ), n
