"""The transform of embeddings to coefficients, and how coefficients are distributed and rounded.

`klt` decorrelates channels, `dct` the places of a grid, `frequencies` sorts coefficients in bands;
`distributions` has the tables that coefficients are coded under, `dead_zone` their rounding.
"""

from coder.transform.dct import cosines
from coder.transform.dead_zone import KAPPA, MARGIN, cells_of
from coder.transform.distributions import family
from coder.transform.frequencies import BANDS, LARGEST, bands_of_grid, parts
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
    "parts",
]
