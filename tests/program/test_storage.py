"""Files: never half written, never another's, never run as code."""

import os
import pickle
import stat
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ppl_dgm.program.storage import read_state, remove_leftovers, write_bytes, write_state

STATE = {"weight": torch.arange(3.0), "nested": {"step": 4, "names": ["a", "b"]}}


def test_a_state_comes_back(tmp_path: Path) -> None:
    write_state(tmp_path / "s.pt", STATE)
    found = read_state(tmp_path / "s.pt", None)
    assert torch.equal(found["weight"], STATE["weight"])
    assert found["nested"] == STATE["nested"]
    assert list(found) == list(STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["s.pt"]


def test_a_failed_write_lets_its_bytes_go(tmp_path: Path, monkeypatch) -> None:
    """An open view keeps its buffer from being freed: an unraisable error on Python 3.13."""
    given = []

    def full(_: object, content: memoryview) -> None:
        given.append(content)
        raise OSError("no space left on device")

    monkeypatch.setattr("ppl_dgm.program.storage.write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_state(tmp_path / "s.pt", STATE)
    with pytest.raises(ValueError, match="released"):
        given[0].tobytes()


def test_every_cut_and_changed_file_is_refused(tmp_path: Path) -> None:
    """One clear error that names the file, wherever a bit flips or it ends; no other numbers."""
    path = tmp_path / "s.pt"
    write_state(path, STATE)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="s.pt"):
            read_state(path, None)
    for place in range(0, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with suppress(ValueError):
            found = read_state(path, None)  # a bit that means nothing to torch
            assert torch.equal(found["weight"], STATE["weight"])


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps(os.getcwd), b"\x00" * 1000])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pt").write_bytes(content)
    with pytest.raises(ValueError, match="other.pt"):
        read_state(tmp_path / "other.pt", None)


def test_torch_reads_ours_and_we_read_torch_s(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "plain.pt")
    assert torch.equal(read_state(tmp_path / "plain.pt", None)["weight"], STATE["weight"])
    write_state(tmp_path / "ours.pt", STATE)
    assert torch.load(tmp_path / "ours.pt", weights_only=True).keys() == STATE.keys()
    torch.save([1.0], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="list.pt holds a list"):
        read_state(tmp_path / "list.pt", None)


def test_links_are_followed_and_modes_kept(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "file", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_new_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_pipes_folders_and_places_that_are_not_there_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(ValueError, match="no regular file"):
            write_bytes(path, b"")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(ValueError, match="does not exist; create it first"):
        write_bytes(tmp_path / "none" / "file", b"")


def test_paths_that_name_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(ValueError, match="'.*circle' cannot be followed"):
        write_bytes(tmp_path / "circle", b"")
    for name in ("folder/", "a" * 256, "é" * 128):
        with pytest.raises(ValueError, match="names no file; expected a name of 1 to 255 bytes"):
            write_bytes(f"{tmp_path}/{name}", b"")
    for name in ("a" * 255, "a" * 250, "aé" * 85, os.fsdecode(b"\xff")):
        write_bytes(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"
    assert not [*tmp_path.glob(".*")]
    (tmp_path / f".{'a' * 241}.01234567.tmp").touch()
    remove_leftovers(tmp_path / ("a" * 250))
    assert not [*tmp_path.glob(".*")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path = tmp_path / "s.pt"
    write_state(path, STATE)

    def fail(*args: object) -> None:
        raise error

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(error):
                write_state(path, {"weight": torch.ones(3)})
        assert torch.equal(read_state(path, None)["weight"], STATE["weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["s.pt"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in (".s.pt.0123abcd.tmp", ".s.pt.x.0123abcd.tmp", ".s.pt.tmp", "s.pt"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "s.pt")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {".s.pt.x.0123abcd.tmp", ".s.pt.tmp", "s.pt"}
