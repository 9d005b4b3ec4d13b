"""Tests state laws, not times: a busy machine breaks none of them. For `pytest -p` too."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
