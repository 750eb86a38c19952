"""Files that are none, or that would be read in two ways."""

import hashlib
import os
import re
import socket
from pathlib import Path

import pytest

from backends.files import opened, parse_json, parse_toml, printable, read_bytes, read_json, read_toml, sha256_of
from backends.state_file import read_state
from conformance.gaps import read_gaps
from conformance.golden_vectors.format import GoldenVectorError, load_files
from reference.errors import CRMAError


def test_reads_a_file_and_its_digest(tmp_path: Path) -> None:
    data = os.urandom(3 * 2**20 + 17)
    (tmp_path / "a").write_bytes(data)
    assert read_bytes(tmp_path / "a") == data
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_a_file_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for name in ("fifo", "socket", "/dev/zero", ".", "missing", "a\0b"):
        with pytest.raises(OSError) as refused:
            read_bytes(tmp_path / name)
        assert refused.value.strerror


def test_a_link_is_followed_only_where_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    assert read_bytes(tmp_path / "link") == b"content"
    with pytest.raises(OSError, match="symbolic link"), opened(tmp_path / "link", follow_links=False):
        pass


READERS = {
    "a limit": (2**40, lambda path: read_bytes(path, limit=100), "where at most 100"),
    "the limit of JSON": (2**40, read_json, "make sense"),
    "memory": (2**43, read_bytes, "more than there is memory for"),
    "memory, hashed": (2**43, lambda path: sha256_of(path, to_load=True), "more than there is memory for"),
    "memory, golden vectors": (2**43, lambda path: load_files(path.parent), "more than there is memory for"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_too_large_is_neither_read_nor_hashed(name: str, tmp_path: Path) -> None:
    size, read, message = READERS[name]
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(size)
    with pytest.raises((OSError, GoldenVectorError), match=message):
        read(tmp_path / "sparse")


def test_memory_that_a_limit_of_the_process_denies_is_named_too(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**30)
    earlier = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (2**28, earlier[1]))
    try:
        with pytest.raises(OSError, match="memory"):
            read_bytes(tmp_path / "sparse")
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, earlier)


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "a": 2}}]', "NaN", '{"a": -Infinity}', "[" * 10**6, "1" * 5000, "", b"\xff"],
)
def test_json_that_can_be_read_in_two_ways_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_a_byte_order_mark_is_no_content() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\xc3\xa9"}') == {"a": "é"}


def test_what_steers_a_terminal_is_escaped() -> None:
    assert printable("Médical 数 ok") == "Médical 数 ok"
    assert printable("a\u00a0\u3000\u200db") == "a\u00a0\u3000\u200db"
    assert printable("a\nb\tc\r", keep="\n\t") == "a\nb\tc\\r"
    assert printable("a\x1b[2J\x07\u202e\n\u200b\ud800") == r"a\x1b[2J\x07\u202e\n\u200b\ud800"


@pytest.mark.parametrize("text", ["a = " + "[" * 10**5, "a = " + "1" * 5000, "a = 0x" + "f" * 5000, "a." * 10**5, "a"])
def test_toml_that_cannot_be_served_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_toml(text)


def test_toml_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_toml(tmp_path / "a.toml") == {"a": 1}


def test_every_reader_of_a_users_file_refuses_what_is_none_at_once(tmp_path: Path) -> None:
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path / "a\0b"):
        if path.name == "fifo":
            os.mkfifo(path)
        for read in (read_state, read_gaps):
            with pytest.raises(CRMAError, match=re.escape(str(path))):
                read(path)
    with pytest.raises(GoldenVectorError, match="named pipe"):
        load_files(tmp_path)
