"""The check of annotations at run time refuses what it should: otherwise all other tests would check less."""

import jax.numpy as jnp
import jaxtyping
import pytest
from beartype.roar import BeartypeCallHintViolation

from t2l_jax.lora import lora_delta
from t2l_jax.training.recipe import ComputeConfig


def test_a_wrong_shape_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        lora_delta(jnp.zeros((2, 3)), jnp.zeros((1, 4)), jnp.zeros((5, 1)))  # i is 3 and 4


def test_a_wrong_type_is_refused():
    with pytest.raises(BeartypeCallHintViolation):
        ComputeConfig().together("eight")
