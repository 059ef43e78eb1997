"""Files are whole or as they were, with the mode and the links that they had."""

import os
import stat

import pytest
from full_disks import full_disk

from keras_pcp.deliver.report import PruningReport
from keras_pcp.errors import FileError, InvalidArgumentError, PruningError
from keras_pcp.graph.selection import Selection
from keras_pcp.support.files import check_target, replacing, write


@pytest.fixture
def report():
    cost = {"macs": 10.0, "params": 10, "bytes": 40}
    return PruningReport("net", {"macs": 5.0}, cost, cost, {"conv": (4, 2)}, [], selection=Selection())


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.json"
    path.write_text("good")
    return path


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_or_is_interrupted_leaves_the_old_file_and_nothing_else(error, good, tmp_path):
    def fail(path):
        with replacing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        fail(good)
    assert good.read_text() == "good"
    assert os.listdir(tmp_path) == ["good.json"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_new_files_have_the_usual_mode_and_old_ones_keep_theirs(umask, good, tmp_path):
    good.chmod(0o640)
    old = os.umask(umask)
    try:
        write(good, "new")
        write(tmp_path / "other", "new")
    finally:
        os.umask(old)
    assert (good.read_text(), mode(good), mode(tmp_path / "other")) == ("new", 0o640, 0o666 & ~umask)


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_and_its_target_is_replaced(there, good, tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link"
    link.symlink_to("../good.json")
    if not there:
        good.unlink()
    write(link, "new")
    assert link.is_symlink()
    assert good.read_text() == "new"
    assert os.listdir(tmp_path / "folder") == ["link"]


def test_a_full_disk_leaves_the_old_file_and_is_an_error_with_its_path(good, tmp_path):
    with full_disk(), pytest.raises(FileError, match=f"cannot write {good}: File too large; .*unchanged") as caught:
        write(good, "x" * 200)
    assert isinstance(caught.value, PruningError | OSError)
    assert good.read_text() == "good"
    assert os.listdir(tmp_path) == ["good.json"]


def test_what_a_writer_raises_after_a_full_disk_is_told_from_other_errors(good):
    def fail(path):
        with replacing(path):
            try:
                raise OSError(28, "No space left on device")
            finally:
                raise ValueError("cannot close while a handle is open")

    with pytest.raises(FileError, match="No space left on device"):
        fail(good)
    with pytest.raises(ValueError, match="of its own"), replacing(good):
        raise ValueError("of its own")


def test_what_is_no_regular_file_is_written_to_and_stays(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR)
    write(path, "new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert path.is_fifo()


def test_targets_that_cannot_be_written_are_refused_at_once(tmp_path):
    for path, message in (
        (tmp_path / "no" / "file", "does not exist"),
        (tmp_path, "is a folder"),
        (3, "path of a file"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            check_target(path)


def test_reports_are_written_whole_or_not_at_all(report, good, tmp_path):
    with full_disk(), pytest.raises(PruningError, match=f"cannot write {good}"):
        report.to_json(good)
    assert good.read_text() == "good"
    report.to_json(good)
    assert '"model": "net"' in good.read_text()
    assert os.listdir(tmp_path) == ["good.json"]


def test_plots_are_written_whole_or_not_at_all(report, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    path.write_text("good")
    with full_disk(), pytest.raises(PruningError, match=f"cannot write {path}"):
        report.plot(path)
    assert path.read_text() == "good"
    report.plot(tmp_path / "plot")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidArgumentError, match=r"cannot draw .*plot.exe"):
        report.plot(tmp_path / "plot.exe")
    assert os.listdir(tmp_path) == ["plot.png"]
