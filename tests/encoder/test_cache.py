"""What becomes of an encoder's embeddings: normalised, or refused with the text they are of."""

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_published import HashEncoder

from t2l_jax.encoder.cache import embed_texts, fingerprint
from t2l_jax.errors import UserError

TEXTS = ["Say one.", "Übersetze!", "Say two."]


def embed(rows: np.ndarray, cache: Path | None = None) -> np.ndarray:
    encoder = HashEncoder()
    return embed_texts(encoder, lambda texts: np.repeat(rows, encoder.dim, axis=1), TEXTS, cache)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_every_embedding_gets_the_same_norm() -> None:
    np.testing.assert_allclose(embed(column(1, -3, 1e-12)), np.repeat(column(1, -1, 1), 12, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "zero: it knows none of the words"),
        (np.nan, "not finite: its weights are damaged"),
        (np.inf, "not finite"),
        (1e38, "not finite"),  # its norm leaves float32
    ],
)
def test_a_text_whose_embedding_has_no_direction_is_named(tmp_path: Path, value: float, message: str) -> None:
    with pytest.raises(UserError, match=rf"description 2, 'Übersetze!': hash's embedding of it is {message}"):
        embed(column(1, value, 0), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_entry_of_another_type_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = embed(column(1, 2, 3), tmp_path)
    (file,) = tmp_path.iterdir()
    for damaged in ({"z": first.astype(np.float64)}, {"y": first}, {"z": first[:2]}):
        save_file(damaged, file)
        np.testing.assert_array_equal(embed(column(1, 2, 3), tmp_path), first)
    assert len(re.findall("is damaged: embedding its texts again", caplog.text)) == 3


def test_the_parts_of_a_gguf_model_are_all_part_of_its_fingerprint(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    for path in (first, second):
        path.write_bytes(b"1")
    before = fingerprint("last-token", first)
    assert fingerprint("last-token", first) == before
    second.write_bytes(b"2")
    assert fingerprint("last-token", first) != before
