"""Stop tokens from the tokenizer and from `generation_config.json`."""

import json

import pytest

from t2l_jax.errors import UserError
from t2l_jax.io.stop_tokens import load_stop_ids


@pytest.mark.parametrize(
    ("eos", "written", "expected"),
    [(2, None, (2,)), (2, {}, (2,)), (2, {"eos_token_id": 7}, (2, 7)), (None, {"eos_token_id": [9, 2]}, (2, 9))],
)
def test_stop_tokens_are_those_of_tokenizer_and_file(tmp_path, eos, written, expected):
    if written is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(written))
    assert load_stop_ids(str(tmp_path), eos) == expected


def test_a_model_without_an_end_and_a_damaged_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="no token ends an answer"):
        load_stop_ids(str(tmp_path), None)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id must be"):
        load_stop_ids(str(tmp_path), 2)
