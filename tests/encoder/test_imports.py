"""What it takes from a sentence to an adapter: neither PyTorch nor sentence-transformers."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_encoders import save_encoder
from tiny_published import reading, save_published

import t2l_jax

pytestmark = pytest.mark.slow
CODE = """
import sys
from t2l_jax import cli
cli.main(["generate", "Sort it", "--model", "model", "--out", "one"])
cli.main(["embed", "Sort it", "Say a", "--encoder", "encoder", "--out", "z.npy"])
assert "transformers" not in sys.modules
import t2l_jax.training.run  # what `t2l train` needs beside an encoder and a tokenizer
print(sorted({"torch", "sentence_transformers", "peft"} & set(sys.modules)))
"""


def test_generate_embed_and_train_import_no_pytorch(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    save_published(tmp_path / "model", replace(reading("description"), encoder=str(tmp_path / "encoder")))
    environment = os.environ | {"PYTHONPATH": str(Path(t2l_jax.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "z.npy").is_file()
    assert done.stdout.endswith("[]\n")
