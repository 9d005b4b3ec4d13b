"""What 10 million chips, and a petabyte of scenes, cost to encode, keep and read.

    python -m benchmarks.costs

Prints the tables of docs/scale.md from what was measured (`MEASURED`) and from prices (`PRICES`),
which are inputs: put in your own. Nothing is measured here.
"""

from dataclasses import dataclass

MEGA, GIGA, TERA = 1e6, 1e9, 1e12
PRICES = {
    "core-hour": 0.04,
    "GPU-hour": 3.0,  # one H200 with 16 cores
    "GB-month": 0.023,
    "1,000 writes": 0.005,
    "1,000 reads": 0.0004,
    "GB sent out": 0.09,
}
"""US dollars: of the order of public list prices of 2026. A GB is 10^9 bytes."""


@dataclass(frozen=True)
class Way:
    """A way to encode.

    Attributes:
      name: model and machine.
      side: of a chip, pixels.
      per_hour: chips per core-hour or GPU-hour.
      unit: one of these, as in `PRICES`.
      chip_bytes: bytes of a chip in the archive, everything counted but the codec.
      objects: objects per shard of 256 chips.
      decoded: embeddings that one core decodes in a second, in order.
    """

    name: str
    side: int
    per_hour: float
    unit: str
    chip_bytes: float
    objects: float
    decoded: float


MEASURED = (
    Way("nec-vit-ti, CPU", 128, 3600 / 0.0181, "core-hour", 406, 4, 1099),
    Way("ViT-B, one H200", 224, 3600 * 1251, "GPU-hour", 1950 + 28, 4, 326),
)
SHARD = 256


def main() -> None:
    """Print the tables."""
    for title, chips_of in (
        ("10 million chips", lambda way: 1e7),
        ("1 PB of scenes, RGB in 8 bits", lambda way: 1e15 / (3 * way.side**2)),
    ):
        print(f"**{title}**\n")
        rows = [_costs(way, chips_of(way)) for way in MEASURED]
        print(f"| | {' | '.join(way.name for way in MEASURED)} |")
        print("| --- " + "| ---: " * len(MEASURED) + "|")
        for name in rows[0]:
            print(f"| {name} | {' | '.join(row[name] for row in rows)} |")
        print()


def _costs(way: Way, chips: float) -> dict[str, str]:
    hours = chips / way.per_hour
    raw, size = chips * 3 * way.side**2, chips * way.chip_bytes
    objects = chips / SHARD * way.objects
    decode = chips / way.decoded / 3600
    encode = hours * PRICES[way.unit]
    requests = 2 * chips / SHARD  # of `valid` and of the embeddings of each shard
    write, read = objects / 1e3 * PRICES["1,000 writes"], requests / 1e3 * PRICES["1,000 reads"]
    return {
        "chips": f"{chips:.3g}",
        "archives of 10 million": f"{_rounded(chips / 1e7)}",
        "side of a chip, pixels": f"{way.side}",
        "pixels, bytes": _bytes(raw),
        "archive, bytes": _bytes(size),
        "times smaller": f"{raw / size:,.0f}",
        "encoding": f"{_rounded(hours)} {way.unit}s, ${_rounded(encode)}",
        "objects written": f"{_rounded(objects)}, ${_rounded(write)}",
        "keeping it, a month": f"${_rounded(size / GIGA * PRICES['GB-month'])}",
        "keeping the pixels, a month": f"${_rounded(raw / GIGA * PRICES['GB-month'])}",
        "sending all embeddings out": f"${_rounded(size / GIGA * PRICES['GB sent out'])}",
        "sending the pixels out": f"${_rounded(raw / GIGA * PRICES['GB sent out'])}",
        "reading all, requests": f"{_rounded(requests)}, ${_rounded(read)}",
        "decoding all": f"{_rounded(decode)} core-hours, ${_rounded(decode * PRICES['core-hour'])}",
    }


def _rounded(value: float) -> str:
    """Two significant digits, written out."""
    return f"{float(f'{value:.2g}'):,.6g}" if value < 1e6 else f"{float(f'{value:.2g}'):,.0f}"


def _bytes(size: float) -> str:
    for unit, name in ((1e15, "PB"), (TERA, "TB"), (GIGA, "GB")):
        if size >= 0.9995 * unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / MEGA:.3g} MB"


if __name__ == "__main__":
    main()
