"""The transform of embeddings to coefficients, and how coefficients are distributed and rounded.

`klt` has `Transform`: it decorrelates channels, and then the places of a grid with `dct`.
`frequencies` cuts a grid into blocks and sorts coefficients into bands. `distributions` makes the
probability tables of coefficients, and `dead_zone` their rounding: the dead zone and the shift.
`holes` fills tokens that are missing.
Which table a coefficient gets is chosen in `coder.fitting.table_choice`.
"""

from coder.transform.dct import cosines, product
from coder.transform.dead_zone import KAPPA, MARGIN, cells_of
from coder.transform.distributions import family
from coder.transform.frequencies import BANDS, LARGEST, bands_of_grid, parts, spans
from coder.transform.holes import filled
from coder.transform.klt import Parts, Transform

__all__ = [
    "BANDS",
    "KAPPA",
    "LARGEST",
    "MARGIN",
    "Parts",
    "Transform",
    "bands_of_grid",
    "cells_of",
    "cosines",
    "family",
    "filled",
    "parts",
    "product",
    "spans",
]
