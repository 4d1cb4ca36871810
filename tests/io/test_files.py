import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest

from t2l_jax.errors import UserError
from t2l_jax.io.files import (
    atomic_folder,
    atomic_write,
    check_name,
    file_sha256,
    locked,
    os_errors_explained,
    read_file,
    read_json,
    read_jsonl,
    refuse_existing,
    remove_partials,
)


def fail_halfway(folder: Path) -> None:
    (folder / "a").write_text("1")
    raise KeyboardInterrupt


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_atomic_write_replaces_and_makes_parents(tmp_path):
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, "first")
    atomic_write(path, "zweite, grün")
    assert path.read_text(encoding="utf-8") == "zweite, grün"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_atomic_write_on_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    atomic_write(path, b"old")
    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(UserError, match=r"no space left on the disk of .*x\.json"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_really_full_disk():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(UserError, match="no space left"), os_errors_explained(Path("/dev/full")):
        Path("/dev/full").write_bytes(b"x")


def test_a_file_system_without_locks_is_explained(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks available\): choose"), locked(tmp_path):
        pass


def test_a_lock_that_another_holds_is_refused_or_waited_for(tmp_path):
    order = []

    def other() -> None:
        with locked(tmp_path, wait=True):
            order.append("other")

    with locked(tmp_path):
        with pytest.raises(UserError, match="another process is writing here: wait for it"), locked(tmp_path):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.05)  # long enough to show that it does not wait
        order.append("own")
    thread.join()
    assert order == ["own", "other"]


def test_writing_below_a_file_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: "):
        atomic_write(tmp_path / "file" / "child", "text")


def test_atomic_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "out"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
        assert folder.parent == target.parent
    assert (target / "a").read_text() == "1"
    assert list(target.parent.iterdir()) == [target]


def test_atomic_folder_leaves_nothing_after_a_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as folder:
        fail_halfway(folder)
    with pytest.raises(UserError, match="no space left"), atomic_folder(tmp_path / "out"):
        full_disk()
    assert list(tmp_path.iterdir()) == []


def test_atomic_folder_keeps_the_old_one_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    atomic_write(tmp_path / "out" / "old", "1")
    rename = Path.rename

    def fail_for_the_new(path: Path, target: Path) -> Path:
        return full_disk() if target == tmp_path / "out" and (path / "new").exists() else rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(UserError, match="no space left"), atomic_folder(tmp_path / "out", replace=True) as folder:
        (folder / "new").write_text("2")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/old"]


def test_atomic_folder_refuses_what_exists_unless_told(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with atomic_folder(target) as folder:  # an empty folder may be filled
        (folder / "old").write_text("")
    with pytest.raises(UserError, match="exists already"), atomic_folder(target):
        pass
    with atomic_folder(target, replace=True) as folder:
        (folder / "new").write_text("")
    assert [p.name for p in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="exists already"), atomic_folder(tmp_path / "file"):
        pass


@pytest.mark.parametrize("where", [".", "link"])
def test_an_empty_folder_is_filled_where_it_is(tmp_path, monkeypatch, where):
    """A shell may stand in it, or it is a link or a mount point: it cannot be renamed or replaced."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to("folder")
    monkeypatch.chdir(folder if where == "." else tmp_path)
    before = folder.stat().st_ino
    with atomic_folder(where) as partial:
        (partial / "a").mkdir()
        (partial / "a" / "b").write_text("1")
        (partial / "c").write_text("2")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == ["a", "a/b", "c"]
    assert folder.stat().st_ino == before
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(UserError, match="exists already"), atomic_folder(where):
        pass


def test_an_empty_folder_stays_empty_after_a_failure(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path) as folder:
        fail_halfway(folder)
    assert not any(tmp_path.iterdir())
    two = tmp_path.with_name("two")
    for name in "ab":
        atomic_write(two / name, "")
    rename = Path.rename

    def fail_for_the_second(path: Path, target: Path) -> Path:
        if path.parent.name.endswith(".partial") and any(not p.name.startswith(".") for p in tmp_path.iterdir()):
            full_disk()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_second)
    with pytest.raises(UserError, match="no space left"), atomic_folder(tmp_path) as folder:
        shutil.copytree(two, folder, dirs_exist_ok=True)
    assert not any(tmp_path.iterdir())


def test_temporaries_of_a_killed_process_do_not_fill_a_folder(tmp_path):
    (tmp_path / ".12.partial").mkdir()
    refuse_existing(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        refuse_existing(tmp_path, empty_folder=False)
    refuse_existing(tmp_path / "new", empty_folder=False)


def test_remove_partials(tmp_path):
    (tmp_path / ".12.partial").mkdir()
    (tmp_path / ".12.partial" / "x").write_text("")
    (tmp_path / ".34.partial").write_text("")
    (tmp_path / "kept.partial").write_text("")
    remove_partials(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.partial"]


def test_read_jsonl(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n\n  \n{"b": "grün"}', encoding="utf-8")
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"b": "grün"})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "not JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (rb'{"a": "\ud800"}', "surrogate"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"7" * 5_000 + b"}", "a number of thousands of digits"),
    ],
)
def test_read_jsonl_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a": "\\u00e9"}\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"t\.jsonl, line 2: .*{message}"):
        list(read_jsonl(path))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"b": 2}\r\n')
    assert list(read_jsonl(tmp_path / "t.jsonl")) == [(1, {"a": 1}), (3, {"b": 2})]
    (tmp_path / "t.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xb6"}')
    assert read_json(tmp_path / "t.json") == {"a": "ö"}
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf")
    assert list(read_jsonl(tmp_path / "t.jsonl")) == []


def test_only_files_are_read(tmp_path):
    """Of a pipe that nobody writes to, or a device, the end would never come."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        for read in (read_json, read_file, lambda p: list(read_jsonl(p)), file_sha256):
            with pytest.raises(UserError, match=rf"{path.name}: a pipe or a device, not a file"):
                read(path)


@pytest.mark.parametrize(("name", "message"), [("x" * 300, "File name too long"), ("a\0b", "null character")])
def test_paths_that_cannot_be_are_refused(tmp_path, name, message):
    path = tmp_path / name
    for act in (read_json, lambda p: atomic_write(p, ""), lambda p: list(read_jsonl(p))):
        with pytest.raises(UserError, match=message):
            act(path)
    with pytest.raises(UserError, match=message), atomic_folder(path):
        pass
    assert not any(tmp_path.iterdir())


def test_a_path_of_thousands_of_folders_is_refused_and_leaves_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deep = Path("a/" * 1_990 + "x")
    with pytest.raises(UserError, match="a thousand folders inside each other"):
        atomic_write(deep, "")
    with pytest.raises(UserError, match="a thousand folders inside each other"), atomic_folder(deep):
        pass
    assert not any(tmp_path.iterdir())


def test_a_json_file_without_end_is_refused(tmp_path):
    with (tmp_path / "t.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="more than 256 MiB"):
        read_json(tmp_path / "t.json")


def test_read_missing(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl cannot be read: No such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


@pytest.mark.parametrize("name", ["a", "task 1", "été-2_x.y", "0000", "a..b", "x" * 200])
def test_check_name_accepts(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a\nb", "a\0b", "\ud800", "x ", "é" * 101, None, 3],
)
def test_check_name_refuses(name):
    with pytest.raises(UserError, match="name"):
        check_name(name)
