"""Which bands of a file are those of a model."""

import re
from collections.abc import Sequence

from nec_jax.images.colours import refuse_other_colours
from nec_jax.images.record import DataError
from nec_jax.models.architecture import ModelConfig
from nec_jax.scene_encoding.scene_files import SceneFile

_COLOURS = {"red", "green", "blue"}
# The bands of Sentinel-2, whose names are also those of Landsat 8 and 9.
_OF_SENTINEL_2 = {"b4": "red", "b3": "green", "b2": "blue"}
_LISTED = 24  # bands that a message lists


def choose_bands(file: SceneFile, config: ModelConfig, bands: Sequence[str]) -> tuple[int, ...]:
    """The number, from 1, of the band of a file for each band of the model.

    Args:
        file: the file.
        config: the model.
        bands: for each band of the model a number from 1, or a description; empty to take the
            bands of the file in their order, if it has as many as the model and does not say that
            they are others.

    Raises:
        DataError: bands that the file does not have, or that must be chosen; the message has the
            option.
    """
    if not bands:
        return _in_order(file, config)
    if len(bands) != config.channels:
        raise DataError(
            f"--bands {' '.join(bands)} names {len(bands)} bands, and the model takes "
            f"{config.channels} ({', '.join(config.bands)}): name one for each"
        )
    return tuple(_named(file, word) for word in bands)


def refuse_other_meaning(file: SceneFile, first: SceneFile, bands: tuple[int, ...]) -> None:
    """Refuse a file of a mosaic whose bands are marked or described as other colours.

    Raises DataError.
    """
    for band in dict.fromkeys(bands):
        own, other = (_meaning(one, band) for one in (file, first))
        if own != other and {own, other} <= _COLOURS:
            raise DataError(
                f"{file.shown}: its band {band} is {own}, and in {first.shown} it is {other}: "
                "store the bands of all files in one order (gdal_translate -b N -b N -b N)"
            )


def _in_order(file: SceneFile, config: ModelConfig) -> tuple[int, ...]:
    """The bands of a file that has those of the model in its order."""
    wanted = [_plain(name) for name in config.bands]
    meanings = {band: _meaning(file, band, wanted) for band in file.bands}
    if len(file.bands) != config.channels:
        what = f"it has {_counted(len(file.bands))}, and the model takes {config.channels}"
    elif any(
        meaning in wanted and meaning != want
        for meaning, want in zip(meanings.values(), wanted, strict=True)
    ):
        what = f"its bands are not in the order of the model, which takes {config.channels}"
    else:
        marks = [file.marks[band - 1] for band in file.bands]
        if not _COLOURS & set(marks):
            try:
                refuse_other_colours(marks)
            except DataError as error:
                raise DataError(f"{file.shown}: {error}") from error
        return file.bands
    text = f"{file.shown}: {what} ({', '.join(config.bands)}): "
    places = [[band for band, meaning in meanings.items() if meaning == want] for want in wanted]
    if all(len(place) == 1 for place in places):
        numbers = " ".join(str(place[0]) for place in places)
        raise DataError(
            f"{text}by their marks or descriptions these are --bands {numbers} ({_list(file)})"
        )
    raise DataError(
        f"{text}say which these are, for example --bands {_example(file, config.channels)}; the "
        f"file has {_list(file)}"
    )


def _named(file: SceneFile, word: str) -> int:
    """The band that a word of --bands names."""
    if word.isascii() and word.isdecimal():
        band = int(word)
        if not 1 <= band <= len(file.marks):
            raise DataError(f"{file.shown}: it has no band {word}: choose from {_list(file)}")
        if band not in file.bands:
            raise DataError(
                f"{file.shown}: its band {band} is marked as alpha: choose another, or unset the "
                f"mark (gdal_edit.py -colorinterp_{band} undefined FILE)"
            )
        return band
    found = [band for band in file.bands if file.descriptions[band - 1] == word]
    if len(found) > 1:
        numbers = ", ".join(map(str, found))
        raise DataError(
            f"{file.shown}: the bands {numbers} are all described as {word!r}: give the number of "
            "the one that is meant"
        )
    if not found:
        raise DataError(
            f"{file.shown}: none of its bands is described as {word!r}: choose from {_list(file)}"
        )
    return found[0]


def _plain(name: str) -> str:
    """The name of a band without what programs write differently, B04 or B4 as red."""
    word = name.partition(",")[0].strip().lower()
    word = re.sub(r"^b0(?=\d)", "b", word)
    return _OF_SENTINEL_2.get(word, word)


def _meaning(file: SceneFile, band: int, wanted: Sequence[str] = ()) -> str:
    """What a band is: by its description, or else by its mark, which GDAL sets unasked."""
    described, mark = _plain(file.descriptions[band - 1]), file.marks[band - 1]
    return described if described in _COLOURS or described in wanted else mark


def _counted(count: int) -> str:
    return "1 band" if count == 1 else f"{count} bands"


def _list(file: SceneFile) -> str:
    """The bands of a file, with what it says of them."""
    texts = []
    for band, (mark, text) in enumerate(zip(file.marks, file.descriptions, strict=True), 1):
        said = text or ("" if mark in ("undefined", "gray", "grey") else mark)
        texts.append(f"{band} ({said})" if said else str(band))
    more = f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return f"{'band' if len(texts) == 1 else 'bands'} {', '.join(texts[:_LISTED])}{more}"


def _example(file: SceneFile, channels: int) -> str:
    """An example of --bands that the file has."""
    if channels == 3 and len(file.bands) > 3:
        found = file.bands[3:0:-1]
    else:
        found = (*file.bands, *file.bands[-1:] * channels)[:channels]
    return " ".join(map(str, found))
