"""Which tokens end an answer: the tokenizer's end of sequence, and what the model's own files add to it."""

from t2l_jax.errors import UserError
from t2l_jax.io import locations
from t2l_jax.io.files import read_json


def load_stop_ids(source: str, eos: int | None) -> tuple[int, ...]:
    """The tokens that end a turn, sorted. `generation_config.json` names several where the end of a turn is not EOS.

    Raises UserError for a file that names something else than token ids, and for a model that names none at all.
    """
    stops = set() if eos is None else {eos}
    path = locations.resolve(source) / "generation_config.json"
    if path.is_file():
        listed = read_json(path).get("eos_token_id")
        ids = listed if isinstance(listed, list) else [] if listed is None else [listed]
        if not all(type(token) is int for token in ids):
            raise UserError(f"{path}: eos_token_id must be a token id or a list of them, got {listed!r}")
        stops.update(ids)
    if not stops:
        raise UserError(f"{source}: no token ends an answer; the tokenizer needs an eos_token")
    return tuple(sorted(stops))
