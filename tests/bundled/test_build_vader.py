from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hf_early_ood.bundled import build_vader
from hf_early_ood.bundled.build_vader import build, parse
from hf_early_ood.errors import DataError


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source archive with one row a domain."""
    texts = {file: "1\t2.5\tcaf\u00e9 &lt;3\u2028x\r\n".encode() for file, _ in build_vader.FILES.values()}
    inner = _archive({f"hutto_ICWSM_2014/{file}": content for file, content in texts.items()})
    root = "vaderSentiment-3.3.2"
    path = tmp_path / "sdist.tar.gz"
    path.write_bytes(
        _archive(
            {f"{root}/LICENSE.txt": b"MIT", f"{root}/additional_resources/hutto_ICWSM_2014.tar.gz": inner},
        )
    )
    monkeypatch.setattr(build_vader, "SDIST_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(build_vader, "FILES", {name: (file, 1) for name, (file, _) in build_vader.FILES.items()})
    return path


def test_build_writes_every_domain_the_same_each_time(sdist: Path, tmp_path: Path) -> None:
    hashes = build(sdist, tmp_path / "a")
    assert build(sdist, tmp_path / "b") == hashes
    assert sorted(hashes) == ["amazon", "movie", "nyt", "tweets"]
    for file in ("tweets.parquet", "movie.parquet", "amazon.parquet", "nyt.parquet", "LICENSE"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert pq.read_table(tmp_path / "a" / "nyt.parquet").to_pylist() == [
        {"id": "1", "text": "caf\u00e9 <3\u2028x", "rating": 2.5}
    ]


def test_command_line(sdist: Path, tmp_path: Path) -> None:
    build_vader.main([str(sdist), str(tmp_path / "out")])
    assert (tmp_path / "out" / "LICENSE").read_bytes() == b"MIT"


def test_another_archive_is_refused(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_vader, "SDIST_SHA256", "0" * 64)
    with pytest.raises(DataError, match="is not the recorded archive"):
        build(sdist, tmp_path / "out")


def test_missing_rows_are_an_error(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_vader, "FILES", {"tweets": ("tweets_GroundTruth.txt", 2)})
    with pytest.raises(DataError, match=r"tweets_GroundTruth.txt is incomplete.*1 rows"):
        build(sdist, tmp_path / "out")


def test_missing_file_is_an_error(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_vader, "FILES", {"tweets": ("other.txt", 1)})
    with pytest.raises(DataError, match=r"missing in the archive.*other.txt"):
        build(sdist, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\t2.5", "Row 1 is not id, rating and text"),
        ("1\t2.5\ta\tb", "Row 1 is not id, rating and text"),
        ("1\t0\ta\n2\t5.5\tb", "Row 2 has no text, or a rating out of range"),
        ("1\tnan\ta", "Row 1 has no text, or a rating out of range"),
        ("1\t0\t ", "Row 1 has no text, or a rating out of range"),
        ("1\t0\ta\n1\t0\tb", "Ids are not unique"),
    ],
)
def test_malformed_rows(content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(content)


def test_entities_that_were_escaped_twice() -> None:
    assert parse("1\t0\tyou&amp;#39;d &lt;3 AT&amp;T")[0].text == "you'd <3 AT&T"
