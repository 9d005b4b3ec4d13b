"""A command on an archive, and a whole archive."""

import pytest
from archive_cases import BAD, written

from coder.cli import main


@pytest.fixture
def run(capsys, tmp_path):
    def run(command, path, *more) -> tuple[int, str, str]:
        out = ["--out", str(tmp_path / "out")] if command == "decode" else []
        status = main([command, str(path), *out, *map(str, more)])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "a.zarr"
    written(path, BAD)
    return path
