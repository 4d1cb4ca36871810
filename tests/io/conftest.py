"""What the tests of base models and of PEFT folders share."""

import pytest


@pytest.fixture(scope="package")
def base(tmp_path_factory):
    """A folder with a tiny random Llama, and our decoder's configuration and parameters of it."""
    from peft_reference import save_llama

    from t2l_jax.io.base import load_base
    from t2l_jax.io.locations import resolve

    folder = tmp_path_factory.mktemp("base")
    save_llama(folder)
    return folder, *load_base(resolve(folder))


@pytest.fixture
def folder(base, tmp_path):
    """A PEFT folder of a random adapter for it."""
    from peft_reference import random_adapter

    from t2l_jax.io.peft import save_peft

    save_peft(random_adapter(base[1].lora_spec(rank=2)), tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="package")
def llama(tmp_path_factory):
    """A folder with a tiny Llama (grouped queries, biases, untied head), and the PyTorch model."""
    from tiny_models import save_tiny

    folder = tmp_path_factory.mktemp("llama")
    return folder, save_tiny("llama, biases", folder)
