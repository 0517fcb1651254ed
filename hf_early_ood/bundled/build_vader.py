"""Build the parquet files of ``bundled:vader-icwsm2014`` from the source archive of vaderSentiment 3.3.2.

Usage: ``python -m hf_early_ood.bundled.build_vader vaderSentiment-3.3.2.tar.gz OUT_DIR``

Decisions: the files are UTF-8 without BOM (an undecodable byte is an error); rows end with CR LF and are split on
LF only, because texts hold other characters that ``str.splitlines`` breaks at; HTML entities (``&amp;``, ``&lt;``,
``&gt;``: ``&lt;3`` is a heart) are unescaped twice, because 17 of them were escaped twice (``&amp;#39;``); white
space at both ends is dropped; nothing else is touched.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import logging
import math
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hf_early_ood.bundled.vader import Row, content_hash
from hf_early_ood.errors import DataError

logger = logging.getLogger(__name__)

SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
# domain -> file inside the inner archive, number of rows that its README states
FILES = {
    "tweets": ("tweets_GroundTruth.txt", 4200),
    "movie": ("movieReviewSnippets_GroundTruth.txt", 10605),
    "amazon": ("amazonReviewSnippets_GroundTruth.txt", 3708),
    "nyt": ("nytEditorialSnippets_GroundTruth.txt", 5190),
}
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_LICENSE = "vaderSentiment-3.3.2/LICENSE.txt"


def build(sdist: Path, out: Path) -> dict[str, str]:
    """Write one parquet file a domain, and the license.

    Args:
        sdist: ``vaderSentiment-3.3.2.tar.gz`` as published on PyPI.
        out: Folder to write into; made if it is not there.

    Returns:
        Domain -> content hash of its rows.

    Raises:
        DataError: If the archive is not the recorded one, or a file is not what its README says.
    """
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise DataError(f"{sdist} is not the recorded archive.", got=f"SHA-256 {found}", allowed=SDIST_SHA256)
    out.mkdir(parents=True, exist_ok=True)
    hashes = {}
    with tarfile.open(sdist) as outer:
        (out / "LICENSE").write_bytes(_read(outer, _LICENSE))
        with tarfile.open(fileobj=io.BytesIO(_read(outer, _INNER))) as inner:
            for domain, (file_name, expected) in FILES.items():
                rows = parse(_read(inner, f"hutto_ICWSM_2014/{file_name}").decode("utf-8"))
                if len(rows) != expected:
                    raise DataError(f"{file_name} is incomplete.", got=f"{len(rows)} rows", allowed=expected)
                _write(rows, out / f"{domain}.parquet")
                hashes[domain] = content_hash(rows)
                logger.info("%s: %d rows, content SHA-256 %s", domain, len(rows), hashes[domain])
    return hashes


def parse(content: str) -> list[Row]:
    r"""Rows of a tab-separated file of id, mean rating and text.

    Raises:
        DataError: If a row has not three fields, a rating is not in [-4, 4], a text is empty or an id is repeated.

    Example:
        >>> parse("1\t2.5\tFish &amp; chips \r\n")
        [Row(id='1', text='Fish & chips', rating=2.5)]
    """
    rows = []
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        fields = line.removesuffix("\r").split("\t")
        if len(fields) != 3:
            raise DataError(f"Row {number} is not id, rating and text.", got=repr(line))
        row = Row(id=fields[0], text=html.unescape(html.unescape(fields[2])).strip(), rating=float(fields[1]))
        if not row.text or not math.isfinite(row.rating) or abs(row.rating) > 4:
            raise DataError(f"Row {number} has no text, or a rating out of range.", got=row, allowed="-4 to 4")
        rows.append(row)
    if len({row.id for row in rows}) != len(rows):
        raise DataError("Ids are not unique.")
    return rows


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = next((m for m in archive.getmembers() if m.name.removeprefix("./") == name), None)
    file = None if member is None else archive.extractfile(member)
    if file is None:
        raise DataError("A file is missing in the archive.", got=name)
    return file.read()


def _write(rows: Sequence[Row], path: Path) -> None:
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("rating", pa.float64())])
    table = pa.Table.from_pylist([row._asdict() for row in rows], schema=schema)
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=False, write_statistics=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Build the data files of bundled:vader-icwsm2014.")
    parser.add_argument("sdist", type=Path, help="vaderSentiment-3.3.2.tar.gz from PyPI")
    parser.add_argument("out", type=Path, help="folder for the parquet files and the license")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(options.sdist, options.out)


if __name__ == "__main__":
    main()
