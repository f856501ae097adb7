"""Folders that appear whole, whatever comes while they are written."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import pytest

from ppl_dgm import claims
from ppl_dgm.program import storage
from ppl_dgm.reporting import folders
from ppl_dgm.reporting.folders import CONTENTS, PAGE, make_folder, written_whole

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills take a process to kill"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
]
OWN = {module.__file__ for module in (claims, folders, storage)}
ATOMIC = ["absent", "empty", "report"]
KINDS = [*ATOMIC, "others", "half"]


def write(folder: Path, version: str) -> None:
    """Write a report whose files tell its version; some are of this version alone."""
    with written_whole(make_folder(folder)) as beside:
        names = ["a.png", f"{version}.nc", PAGE]
        for name in names:
            (beside / name).write_text(version)
        (beside / CONTENTS).write_text(json.dumps({"own_files": names, "version": version}))


def make(folder: Path, kind: str) -> None:
    """Make what may be there before."""
    if kind == "empty":
        folder.mkdir()
    if kind in ("report", "others", "half"):
        write(folder, "old")
    if kind in ("others", "half"):
        (folder / "notes.txt").write_text("mine")
    if kind == "half":  # killed while its files were moved
        write(folder.with_name("other"), "half")
        ready = folder.with_name("other").rename(folder / ".0123abcd.ready.tmp")
        (folder / "old.nc").unlink()
        (ready / "a.png").replace(folder / "a.png")


def found(folder: Path) -> str | None:
    """The version of the whole report in a folder; None for none."""
    files = {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else {}
    assert files.pop("notes.txt", "mine") == "mine"
    if not files:
        return None
    version = json.loads(files.pop(CONTENTS))["version"]
    assert files == dict.fromkeys(["a.png", f"{version}.nc", PAGE], version)
    return version


class AtLine:
    """A trace function that does something at the n-th line of the writing."""

    def __init__(self, at: int, act: Callable[[], Any]) -> None:
        self.left, self.act = at, act

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in OWN:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.act()
        return self


@contextmanager
def traced(tracer: AtLine) -> Iterator[None]:
    sys.settrace(tracer)
    try:
        yield
    finally:
        sys.settrace(None)


def in_child(work: Callable[[], Any]) -> int:
    """Run something in a process of its own, whose number it gives."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    return child


def ending(child: int) -> int:
    """How a process ended: 0 for well."""
    return os.waitpid(child, 0)[1]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    sys.settrace(None)
    raise KeyboardInterrupt


def write_until(folder: Path, line: int, act: Callable[[], Any]) -> None:
    with traced(AtLine(line, act)):
        write(folder, "new")


def check_attacks(home: Path, kind: str, attack: Callable, atomic: bool) -> None:
    """Attack a writing at one line after the other, until it gets to its end.

    The folder holds a whole report, after the next start where files are moved one by one, and
    nothing else is left.
    """
    before = {"report": "old", "others": "old", "half": "half"}.get(kind)
    for line in range(1, 1000):
        folder = home / str(line) / "report"
        folder.parent.mkdir()
        make(folder, kind)
        hit = attack(folder, line)
        if atomic:
            assert found(folder) in (before, "new")
        if folder.exists():
            folders._clear_up(folder.resolve())
        assert found(folder) in (before, "new")
        assert {path.name for path in folder.parent.iterdir()} <= {"report"}
        if not hit:
            assert found(folder) == "new"
            return
    pytest.fail("it never came to an end")


def killed(folder: Path, line: int) -> int:
    return ending(in_child(lambda: write_until(folder, line, kill)))


def interrupted(folder: Path, line: int) -> bool:
    try:
        write_until(folder, line, interrupt)
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_kills_between_any_lines(
    kind: str, exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    check_attacks(tmp_path, kind, killed, exchanges and kind in ATOMIC)


@pytest.mark.parametrize("kind", [*KINDS[:-1], pytest.param(KINDS[-1], marks=pytest.mark.slow)])
def test_interruptions_between_any_lines(kind: str, tmp_path: Path) -> None:
    check_attacks(tmp_path, kind, interrupted, kind in ATOMIC)


def test_ctrl_c_waits_for_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are moved one by one are all moved."""
    folder, move = tmp_path / "report", os.replace
    make(folder, "others")

    def moving(one: Path, other: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        move(one, other)

    monkeypatch.setattr(os, "replace", moving)
    with pytest.raises(KeyboardInterrupt):
        write(folder, "new")
    assert found(folder) == "new"


@pytest.mark.parametrize("kind", ["report", "others"])
def test_processes_that_write_one_folder(kind: str, tmp_path: Path) -> None:
    """Each writes over the others' reports again and again: all succeed, the last one is whole."""
    folder = tmp_path / "report"
    make(folder, kind)

    def work(name: str) -> None:
        for turn in range(30):
            write(folder, f"{name}{turn}")

    children = [in_child(partial(work, name)) for name in "xyz"]
    assert [ending(child) for child in children] == [0, 0, 0]
    assert found(folder) in ("x29", "y29", "z29")
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_living_process_writes_is_not_cleared_up(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    with written_whole(make_folder(folder)) as beside:
        write(folder, "new")
        assert beside.exists()
        (beside / CONTENTS).write_text(json.dumps({"own_files": []}))
    assert [path.name for path in folder.iterdir()] == [CONTENTS]


# ---- odd places ----------------------------------------------------------------------------------


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there" / "report", target_is_directory=True)
    write(tmp_path / "link", "new")
    write(tmp_path / "link", "newer")
    assert (tmp_path / "link").is_symlink()
    assert found(tmp_path / "there" / "report") == "newer"


def test_the_folder_one_is_in_stays_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    """A program, or its shell, would else be in a folder that is gone."""
    (tmp_path / "report").mkdir()
    monkeypatch.chdir(tmp_path / "report")
    for version in ("old", "new"):
        write(Path(), version)
        assert found(Path()) == found(tmp_path / "report") == version


def test_modes_are_kept(tmp_path: Path) -> None:
    make(tmp_path / "report", "report")
    (tmp_path / "report").chmod(0o750)
    write(tmp_path / "report", "new")
    assert (tmp_path / "report").stat().st_mode & 0o777 == 0o750


def test_names_of_all_lengths_are_taken(tmp_path: Path) -> None:
    for size in (240, 255):
        write(tmp_path / ("x" * size), "old")
        write(tmp_path / ("x" * size), "new")
        assert found(tmp_path / ("x" * size)) == "new"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "is a file; expected a folder"),
        ("file/report", "cannot be made"),
        ("circle", "cannot be made"),
        ("x" * 256, "cannot be made"),
        ("a\0b", "cannot be made"),
        ("theirs", r"has \['results.json'\] that no report wrote"),
        ("taken", r"has \['report.html'\] that no report wrote"),
    ],
)
def test_places_that_cannot_be_meant_are_refused(place: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / CONTENTS).write_text("[1, 2]")
    (tmp_path / "taken" / PAGE).mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        make_folder(tmp_path / place)
    assert (tmp_path / "theirs" / CONTENTS).read_text() == "[1, 2]"


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    make(tmp_path / "report", "others")
    (tmp_path / "report" / "new.nc").write_text("mine")
    with pytest.raises(ValueError, match=r"has \['new.nc'\] that no report wrote"):
        write(tmp_path / "report", "new")
    (tmp_path / "report" / "new.nc").unlink()
    assert found(tmp_path / "report") == "old"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs a user to be")
def test_folders_that_one_may_not_write_are_refused() -> None:
    """By another user, since the superuser may write everywhere."""

    def refuse(place: Path, message: str) -> None:
        os.setuid(65534)
        with pytest.raises(ValueError, match=message):
            make_folder(place)

    with TemporaryDirectory() as name:  # pytest's folders are for one user alone
        home = Path(name)
        home.chmod(0o755)
        make(home / "report", "report")
        assert ending(in_child(lambda: refuse(home / "report", "cannot be written"))) == 0
        assert ending(in_child(lambda: refuse(home / "new", "cannot be made"))) == 0
        assert found(home / "report") == "old"
