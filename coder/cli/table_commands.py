"""The commands for a Parquet table of coded vectors: `info`, `verify`, `decode`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder import files
from coder.archive import zarr_nodes
from coder.cli import refiner_facts
from coder.cli.arguments import Decode, Info, Verify
from coder.embedding_files import BlobTable, with_vectors, write_csv, write_decoded
from coder.errors import InputError, about
from coder.fitting import StatedError
from coder.refiner import load_refiner

_PARQUET = (".parquet", ".geoparquet", ".gpq", ".pq")


def run(options: Info) -> tuple[int, dict[str, Any]]:
    """Say what a table holds, decode all of it, or write it decoded."""
    path = Path(options.file)
    if isinstance(options, Decode):
        return 0, _decode(path, options)
    table = BlobTable(path)
    facts = _facts(table)
    if isinstance(options, Verify):
        missing = sum(int((~there).sum()) for _, _, there in table.batches())
        print(f"good: {table.num_rows:,} rows, {missing:,} of them without a vector")
        return 0, facts | {"good": True, "missing": missing}
    per_row = table.blob_bytes / max(1, table.num_rows)
    print(f"table, {path.stat().st_size:,} bytes, {table.num_rows:,} rows")
    print(f"  columns {', '.join(table.names)}; {table.column} is coded")
    print(
        f"  vectors of {' x '.join(map(str, table.shape))}, {table.blob_bytes:,} bytes, "
        f"{per_row:.2f} per row; up to {table.record.get('rows_per_blob')} rows share a blob"
    )
    codec = table.codec
    print(
        f"codec {codec.fingerprint[:4].hex()}, quality {codec.quality}, in {table.codec_bytes:,} "
        "bytes of the file's footer"
    )
    if (error := StatedError.from_json(table.record.get(zarr_nodes.ERROR))) is not None:
        print(f"stated when it was encoded: {error}")
    return 0, facts | {"bytes": path.stat().st_size, "columns": table.names}


def _facts(table: BlobTable) -> dict[str, Any]:
    return {
        "kind": "table",
        "rows": table.num_rows,
        "column": table.column,
        "shape": table.shape,
        "fingerprint": table.codec.fingerprint.hex(),
        "quality": table.codec.quality,
        "blob_bytes": table.blob_bytes,
        "codec_bytes": table.codec_bytes,
        "record": table.record,
    }


def _decode(path: Path, options: Decode) -> dict[str, Any]:
    out = options.out
    kept = {"overwrite": options.overwrite, "inputs": [path]}
    files.check_output(out, **kept)
    is_csv = out.suffix.lower() == ".csv"
    if not is_csv and out.suffix.lower() not in _PARQUET:
        raise InputError("a table is decoded to NAME.parquet, or to NAME.csv for NeuCo-Bench", out)
    if options.id is not None and not is_csv:
        raise InputError("--id is for NAME.csv: a Parquet table keeps all of its columns")
    if options.refine and options.refiner is None:
        raise InputError("a table holds no refiner: give one with --refiner")
    refiner = None
    if options.refiner is not None:
        with about(options.refiner):
            refiner = load_refiner(options.refiner)
    table = BlobTable(path, refiner)
    facts = {"out": str(out), "rows": table.num_rows, "shape": table.shape}
    note = ""
    if refiner is not None:
        facts["refiner"] = refiner.fingerprint.hex()
        note = f", refined: {refiner_facts.line(refiner)}"
    if is_csv:
        return facts | _decode_to_csv(table, out, options)
    with files.writing(out, **kept) as file:
        missing = write_decoded(table, file)
    print(
        f"{out}: {table.num_rows:,} rows with vectors of {' x '.join(map(str, table.shape))} "
        f"float32, {missing:,} of them null{note}; {out.stat().st_size:,} bytes"
    )
    return facts | {"missing": missing, "bytes": out.stat().st_size}


def _decode_to_csv(table: BlobTable, out: Path, options: Decode) -> dict[str, Any]:
    name = options.id or "id"
    if name not in table.names or name == table.column:
        listed = ", ".join(one for one in table.names if one != table.column) or "none"
        raise InputError(f"no column {name}: name the column of ids, --id, one of {listed}")
    if len(table.shape) != 1:
        raise InputError("rows hold grids, and NeuCo-Bench takes a vector for each id")

    def rows() -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        for batch, y, there in table.batches([name]):
            ids = [None if one is None else str(one) for one in batch.column(0).to_pylist()]
            yield from with_vectors(ids, y, there)

    written = write_csv(rows(), table.shape[0], out, overwrite=options.overwrite)
    return {"missing": table.num_rows - written} | told_csv(
        out, written, table.num_rows, table.shape[0], table.blob_bytes, table.codec_bytes
    )


def told_csv(
    out: Path, written: int, rows: int, width: int, coded_bytes: int, codec_bytes: int
) -> dict[str, Any]:
    """Print what a CSV holds, and what its embeddings take as they are coded; the facts of it."""
    left = f"; {rows - written:,} without an embedding are left out" * (rows > written)
    per_row = coded_bytes / written
    print(f"{out}: {written:,} embeddings of {width} numbers, as NeuCo-Bench reads them{left}")
    print(
        f"coded they take {coded_bytes:,} bytes, {per_row:.1f} each, and the codec "
        f"{codec_bytes:,}; as float32 {4 * width * written:,}"
    )
    facts = {"ids": written, "numbers": width, "coded_bytes": coded_bytes}
    return facts | {"bytes_per_embedding": per_row, "codec_bytes": codec_bytes}
