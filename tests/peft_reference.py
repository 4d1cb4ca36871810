"""A tiny random Llama with an adapter: its logits by the real `peft` in PyTorch, and by ours."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from t2l_jax.decoder import Decoder, logits
from t2l_jax.lora import Adapter

TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12))


def save_llama(folder):
    """Write the Llama as transformers does."""
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def torch_model(base):
    return transformers.LlamaForCausalLM.from_pretrained(base[0])


def torch_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.asarray(TOKENS)).logits.numpy()


@partial(jax.jit, static_argnums=0)
def our_logits(config, params, adapter=None):
    hidden, _ = Decoder(config).apply({"params": params}, jnp.asarray(TOKENS), adapter)
    return logits(config, params, hidden)


def deltas(adapter) -> dict[str, np.ndarray]:
    """What the adapter adds to each projection's kernel [L, i, o]."""
    scale, weights = adapter.spec.scale, jax.device_get(adapter.weights)
    return {name: scale * np.einsum("lri,lor->lio", w["a"], w["b"]) for name, w in weights.items()}


def merged_logits(base, adapter):
    """`our_logits` by way of the weights: compiled once for adapters of every spec."""
    _, config, params = base
    layers = dict(params["layers"])
    for name, delta in deltas(adapter).items():
        layers[name] = {"kernel": np.asarray(layers[name]["kernel"]) + delta}
    return our_logits(config, {**params, "layers": layers})


def random_adapter(spec, seed=0):
    """Unlike at the start of training, B is not zero."""
    rng = np.random.default_rng(seed)
    weights = {
        name: {side: 0.1 * rng.standard_normal(shape, np.float32) for side, shape in shapes.items()}
        for name, shapes in spec.shapes().items()
    }
    return Adapter(weights, spec)


def write_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, edit):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def rename(tensors, old, new):
    for name in list(tensors):
        tensors[name.replace(old, new)] = tensors.pop(name)
