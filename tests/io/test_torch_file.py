"""Files of torch.save: no code in them runs, and damaged ones are named."""

import pickle
import zipfile
from pathlib import Path

import pytest
from sakana_files import args_of, random_state, save

from t2l_jax.errors import UserError
from t2l_jax.io.sakana import import_sakana


class Marker:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["an entry of the state dict", "a bare pickle", "an archive of another name"])
def test_code_in_a_pickle_does_not_run(form, tmp_path):
    folder = save(tmp_path / "theirs", args_of("L"), {**random_state(args_of("L")), "x": Marker(tmp_path / "marker")})
    file = folder / "hypermod.pt"
    message = "its pickle names .*: it could run code, and is not loaded"
    if form == "a bare pickle":
        file.write_bytes(pickle.dumps(Marker(tmp_path / "marker")))
        message = "damaged or cut short, or no file of torch.save"
    if form == "an archive of another name":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps(Marker(tmp_path / "marker"), protocol=4))
    with pytest.raises(UserError, match=message):
        import_sakana(folder, tmp_path / "ours")
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "ours").exists()


def test_a_file_that_is_damaged_or_cut_short(tmp_path):
    folder = save(tmp_path / "theirs", args_of("L"), random_state(args_of("L")))
    file = folder / "hypermod.pt"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    with zipfile.ZipFile(file) as archive:
        last = max(archive.infolist(), key=lambda record: record.file_size if "/data/" in record.filename else 0)
    flipped[last.header_offset + 200] ^= 1
    for content in (b"", whole[:100], whole[: len(whole) // 2], whole[:-30], bytes(flipped), b"x" * 1000):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"hypermod\.pt: damaged"):
            import_sakana(folder, tmp_path / "ours")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"0" * 10**6)
    with pytest.raises(UserError, match=r"hypermod\.pt: compressed, or with a record twice"):
        import_sakana(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
