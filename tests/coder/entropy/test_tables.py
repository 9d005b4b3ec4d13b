import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coder import CodecError, Tables
from coder.entropy import pmf_from_counts as recalibrate
from coder.entropy import quantise_pmf
from coder.entropy.tables import MAX_SIZE

TOTAL = 1 << 24


@st.composite
def pmfs(draw):
    n = draw(st.integers(2, 600))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # From flat to so peaked that most entries lie far below one unit.
    pmf = rng.gamma(draw(st.sampled_from([0.003, 0.05, 1.0, 100.0])), size=n)
    pmf[draw(st.integers(0, n - 1))] += 1e-3
    return pmf / pmf.sum()


@given(pmfs())
def test_weights_sum_to_the_precision_and_none_is_zero(pmf):
    weights = quantise_pmf(pmf)
    assert weights.dtype == np.uint32
    assert weights.min() >= 1
    assert weights.sum(dtype=np.int64) == TOTAL


@given(pmfs())
def test_weights_cost_hardly_more_than_the_entropy(pmf):
    weights = quantise_pmf(pmf)
    seen = pmf > 0
    excess_bits = (pmf[seen] * np.log2(pmf[seen] * TOTAL / weights[seen])).sum()
    assert excess_bits <= 3 * pmf.size / TOTAL


@given(pmfs())
def test_no_entry_pays_for_the_rounding_of_the_sum(pmf):
    weights = quantise_pmf(pmf).astype(np.int64)
    assert (weights > pmf * TOTAL * (1 - pmf.size / TOTAL) - 1).all()
    # The more probable never gets less, but for the unit that largest remainder hands out.
    assert np.diff(weights[np.argsort(pmf)]).min() >= -1


def test_extreme_pmfs():
    assert quantise_pmf([1, 0]).tolist() == [TOTAL - 1, 1]
    assert quantise_pmf([5e-324, 5e-324]).tolist() == [TOTAL // 2, TOTAL // 2]
    assert quantise_pmf([1e300, 1e300, 0]).sum() == TOTAL
    assert quantise_pmf(np.ones(MAX_SIZE)).tolist() == [256] * MAX_SIZE
    just_below = np.full(MAX_SIZE, 0.999 / TOTAL)
    just_below[0] = 1
    assert quantise_pmf(just_below).sum() == TOTAL


@pytest.mark.parametrize(
    "pmf", [[1.0], [], [[0.5, 0.5]], [0, 0], [-0.1, 1.1], [np.nan, 1], [np.inf, 1]]
)
def test_what_is_no_pmf_is_refused(pmf):
    with pytest.raises(CodecError, match="pmf"):
        quantise_pmf(pmf)


def test_posterior_is_the_dirichlet_mean():
    low, pmf, escape = recalibrate([0, 0, 1, 3], 0, [0.5, 0.25, 0.125], strength=2, tail_mass=0)
    assert low == 0
    np.testing.assert_allclose(pmf * 6, [2 + 1, 1 + 0.5, 0.25, 1])
    assert escape * 6 == pytest.approx(0.25)


@given(
    st.lists(st.integers(-300, 300), max_size=60),
    st.integers(-50, 50),
    st.floats(1e-3, 1e3),
    st.sampled_from([0.0, 1e-6, 1e-2, 0.3]),
)
def test_trimming_keeps_what_was_observed_and_drops_no_more_than_asked(
    symbols, low, strength, tail
):
    prior = np.exp(-0.3 * np.abs(np.arange(-40, 41)))
    prior *= 0.99 / prior.sum()
    minimum, pmf, escape = recalibrate(np.array(symbols, int), low, prior, strength, tail)
    assert pmf.sum() + escape == pytest.approx(1)
    assert escape <= tail + 0.01 * strength / (len(symbols) + strength) + 1e-12
    for symbol in symbols:
        assert minimum <= symbol < minimum + pmf.size
        assert pmf[symbol - minimum] > 0


def test_absurd_outliers_go_to_the_escape():
    symbols = np.array([-(2**31), 0, 0, 1, 2**31 - 1])
    minimum, pmf, escape = recalibrate(symbols, -1, [0.3, 0.4, 0.3])
    assert minimum <= 0
    assert pmf.size < MAX_SIZE
    assert escape == pytest.approx(2 / 6)
    Tables.from_pmfs([(minimum, pmf, escape)])


def test_dead_channel_costs_nothing():
    result = recalibrate(np.full(1000, 7), -2, [0.2] * 5)
    tables = Tables.from_pmfs([result])
    assert (tables.minimum[0], tables.sizes[0]) == (7, 2)
    assert -np.log2(tables.pmf(0)[0]) < 1e-7


def test_few_equal_symbols_are_no_dead_channel():
    _, pmf, escape = recalibrate(np.full(20, 7), -2, [0.2] * 5)
    assert pmf.size == 10
    assert escape < 0.01


def test_nothing_observed_gives_the_prior():
    minimum, pmf, escape = recalibrate(np.array([], int), 4, [0.25, 0.5], strength=3)
    assert (minimum, pmf.tolist(), escape) == (4, [0.25, 0.5], 0.25)
    assert recalibrate(np.array([], int), 4, [0.0, 0.0])[2] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"symbols": [0.5]},
        {"prior_pmf": [0.7, 0.7]},
        {"prior_pmf": [-0.1]},
        {"prior_pmf": []},
        {"strength": 0},
        {"tail_mass": 1},
    ],
)
def test_bad_calibration_is_refused(changes):
    with pytest.raises(CodecError):
        recalibrate(**({"symbols": [1], "prior_minimum": 0, "prior_pmf": [1.0]} | changes))


def test_tables_hand_back_each_table():
    tables = Tables.from_pmfs([(-5, [0.5, 0.25], 0.25), (2**31 - 3, [0.75], 0.25)])
    assert len(tables) == 2
    assert tables.minimum.tolist() == [-5, 2**31 - 3]
    assert tables.sizes.tolist() == [3, 2]
    assert tables.starts.tolist() == [0, 3]
    assert tables.weights_of(1).tolist() == [3 << 22, 1 << 22]
    assert tables.pmf(0).tolist() == [0.5, 0.25, 0.25]


def test_tables_cannot_be_changed():
    minimum = np.array([0])
    tables = Tables(minimum, np.array([2]), np.array([1, TOTAL - 1]))
    minimum[0] = 9
    assert tables.minimum[0] == 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        tables.weights.flags.writeable = True


@pytest.mark.parametrize(
    ("minimum", "sizes", "weights", "message"),
    [
        ([0], [2], [TOTAL - 2, 1], "sums to"),
        ([0], [3], [0, 1, TOTAL - 1], "zero"),
        ([0], [1], [TOTAL], "2 to"),
        ([0], [3], [1, TOTAL - 1], "sizes say"),
        ([0, 0], [2], [1, TOTAL - 1], "minima"),
        ([2**31 - 1], [2], [1, TOTAL - 1], "int32"),
        ([2**31], [2], [1, TOTAL - 1], "int32"),
        ([0], [2], [-1, TOTAL + 1], "uint32"),
        ([0.0], [2], [1, TOTAL - 1], "integers"),
        ([], [], [], "non-empty"),
    ],
)
def test_bad_tables_are_refused(minimum, sizes, weights, message):
    with pytest.raises(CodecError, match=message):
        Tables(minimum, sizes, weights)


def test_no_tables_are_refused():
    with pytest.raises(CodecError, match="no tables"):
        Tables.from_pmfs([])
