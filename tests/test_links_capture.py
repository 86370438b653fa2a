"""Captures: round trip, errors that name their line, and a writer that never holds its caller."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.links import capture as module
from edge_agent.links.capture import (
    RECEIVED,
    SENT,
    CaptureError,
    CaptureWriter,
    format_line,
    parse_capture,
    read_capture,
    write_capture,
)
from edge_agent.records import Chunk


def test_a_hand_written_capture_reads_as_meant() -> None:
    text = """# driver: nonin
# started: 2025-03-01T08:00:00+00:00
# a remark that is not a header

< 0 - 01 81 0100 83   # first frame
> 0.25 10.0.0.7:4242 0B4d
< 1.000000001 2a37
# late: not a header any more
"""
    capture = parse_capture(text.splitlines())
    assert capture.header == {"driver": "nonin", "started": "2025-03-01T08:00:00+00:00"}
    assert capture.entries == [
        (RECEIVED, Chunk(0, bytes.fromhex("0181010083"), "")),
        (SENT, Chunk(250_000_000, b"\x0bM", "10.0.0.7:4242")),
        (RECEIVED, Chunk(1_000_000_001, b"", "2a37")),
    ]
    assert [chunk.channel for chunk in capture.received()] == ["", "2a37"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("< 0.0", "expected"),
        ("= 0.0 - 00", "expected"),
        ("< -1 - 00", "seconds"),
        ("< nan - 00", "seconds"),
        ("< 1.0000000001 - 00", "seconds"),
        ("< 1 - 0", "hex"),
        ("< 1 - zz", "hex"),
        ("< 0.5 - 00", "backwards"),
    ],
)
def test_an_error_names_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "bad.cap"
    path.write_text(f"# driver: nonin\n< 0.75 - 00\n{line}\n")
    with pytest.raises(CaptureError, match=says) as caught:
        read_capture(path)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_files_that_are_not_captures_are_told(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="No such file"):
        read_capture(tmp_path / "none.cap")
    (tmp_path / "binary.cap").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(CaptureError, match="not text"):
        read_capture(tmp_path / "binary.cap")


_CHUNKS = st.lists(
    st.tuples(
        st.sampled_from([RECEIVED, SENT]),
        st.integers(0, 10**15),
        st.binary(max_size=40),
        st.sampled_from(["", "2a37", "10.0.0.7:4242", "[::1]:99"]),
    )
)


@given(_CHUNKS)
def test_what_is_written_is_read_back(rows: list[tuple[module.Direction, int, bytes, str]]) -> None:
    at_ns = 0
    entries = []
    for direction, step, data, channel in rows:
        at_ns = at_ns + step if entries else 0
        if at_ns < 10**18:  # nine digits of seconds
            entries.append((direction, Chunk(at_ns, data, channel)))
    lines = [format_line(direction, chunk) for direction, chunk in entries]
    assert parse_capture(lines).entries == entries


def test_a_writer_and_write_capture_make_readable_files(tmp_path: Path) -> None:
    writer = CaptureWriter(tmp_path / "new" / "a.cap", header={"driver": "masimo"})
    entries = [(RECEIVED, Chunk(5_000 + i, bytes([i]), "")) for i in range(200)]
    entries.append((SENT, Chunk(5_100, b"late", "x")))  # stamped before the one it follows
    for direction, chunk in entries:
        assert writer.append(direction, chunk)
    writer.close()
    assert not writer.append(RECEIVED, Chunk(0, b""))
    capture = read_capture(writer.path)
    assert capture.header["driver"] == "masimo" and "started" in capture.header
    assert [chunk.data for _, chunk in capture.entries] == [chunk.data for _, chunk in entries]
    assert capture.entries[0][1].at_ns == 0 and capture.entries[199][1].at_ns == 199 == capture.entries[200][1].at_ns
    assert os.stat(writer.path).st_mode & 0o777 == 0o600

    write_capture(tmp_path / "b.cap", capture)
    assert read_capture(tmp_path / "b.cap") == capture


def test_an_earlier_capture_is_kept(tmp_path: Path) -> None:
    for data in (b"\x01", b"\x02"):
        writer = CaptureWriter(tmp_path / "a.cap")
        writer.append(RECEIVED, Chunk(0, data))
        writer.close()
    assert read_capture(tmp_path / "a.cap").entries[0][1].data == b"\x02"
    assert read_capture(tmp_path / "a.cap.old").entries[0][1].data == b"\x01"


def test_a_disk_that_stands_still_costs_chunks_and_not_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, standing = threading.Event(), threading.Event()
    real = module._CaptureFile.write

    def stalled(self: module._CaptureFile, batch: list[tuple[module.Direction, Chunk] | int]) -> int:
        standing.set()
        assert go.wait(30)
        return real(self, batch)

    monkeypatch.setattr(module._CaptureFile, "write", stalled)
    writer = CaptureWriter(tmp_path / "a.cap", pending_bytes=10_000)
    assert writer.append(RECEIVED, Chunk(0, b"first"))
    assert standing.wait(30)
    taken = [writer.append(RECEIVED, Chunk(i, bytes(100))) for i in range(1, 201)]
    assert taken[0] and not taken[-1]
    kept = taken.count(True)
    assert kept < 40 and writer.dropped == 200 - kept  # 10 000 bytes hold 38 chunks of 100 bytes
    go.set()
    writer.close(30)
    text = (tmp_path / "a.cap").read_text()
    assert f"# dropped {200 - kept} chunks" in text
    assert len(read_capture(tmp_path / "a.cap").entries) == 1 + kept


def test_a_full_disk_leaves_whole_lines_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    real = os.write

    def write(descriptor: int, data: memoryview) -> int:
        writes.append(len(data))
        if len(writes) == 3:
            return real(descriptor, data[:7])
        if len(writes) == 4:
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(module.os, "write", write)
    file = module._CaptureFile(tmp_path / "a.cap", {"driver": "x"}, 1 << 20)
    assert file.write([(RECEIVED, Chunk(0, b"\x01"))]) == 0
    with pytest.raises(OSError, match="No space"):
        file.write([(RECEIVED, Chunk(1, b"\x02"))])
    assert [chunk.data for chunk in read_capture(tmp_path / "a.cap").received()] == [b"\x01"]
    file.unmarked = 1
    assert file.write([(RECEIVED, Chunk(2, b"\x03"))]) == 0
    file.close()
    assert [chunk.data for chunk in read_capture(tmp_path / "a.cap").received()] == [b"\x01", b"\x03"]
    assert "# dropped 1 chunks" in (tmp_path / "a.cap").read_text()


def test_a_capture_ends_at_its_limit(tmp_path: Path) -> None:
    writer = CaptureWriter(tmp_path / "a.cap", max_file_bytes=20_000)
    for i in range(3_000):
        writer.append(RECEIVED, Chunk(i, b"\x01"))
    writer.close(30)
    entries = read_capture(tmp_path / "a.cap").entries
    assert len(entries) + writer.dropped == 3_000 and writer.dropped > 0
    assert "limit of 20000 bytes" in writer.error and "# ended: limit" in (tmp_path / "a.cap").read_text()


def test_a_folder_that_cannot_be_written_is_an_error_text_and_not_an_exception(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = CaptureWriter(tmp_path / "file" / "a.cap")
    writer.append(RECEIVED, Chunk(0, b"\x01"))
    writer.close(30)
    assert writer.dropped == 1 and "a.cap" in writer.error
