"""`python slow_command.py SECONDS ARGUMENTS`: `t2l` with an encoder that needs no model, and so long for each batch.

Its processes meet all the time.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tiny_published import HashEncoder

from t2l_jax import cli, distributed
from t2l_jax import model as model_module


class SlowEncoder(HashEncoder):
    def embed(self, texts: Sequence[str], cache: Path | None = None) -> np.ndarray:
        time.sleep(float(sys.argv[1]))
        print("texts:", len(texts), file=sys.stderr)
        return super().embed(texts, cache)


model_module.load_encoder = lambda source, **_: SlowEncoder()
distributed.MEETING = 0.2
cli.main(sys.argv[2:])
