"""The base model as a user meets it, on a tiny random Llama with a tokenizer of bytes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from t2l_jax.decoder.generation import Sampling
from t2l_jax.errors import UserError
from t2l_jax.llm import LLM
from t2l_jax.lora import Adapter, init_adapter, merge, stack
from t2l_jax.sharding import make_mesh

TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<s>{{ turn.role }}:{{ turn.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
TOKENS = np.arange(12).reshape(2, 6)
SAMPLING = Sampling(24, temperature=3.0)  # hot: many bytes that are no UTF-8


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A token a byte: random tokens are mostly broken UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder as the hub has them."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=[3, 5],
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def llm(folder):
    return LLM.load(str(folder))


@pytest.fixture(scope="module")
def adapters(llm) -> Adapter:
    """Two adapters that change the logits."""
    spec = llm.config.lora_spec(rank=2)
    keys = jax.random.split(jax.random.key(0), 2)
    return stack(
        [
            jax.tree.map(lambda leaf, key=key: leaf + jax.random.normal(key, leaf.shape), init_adapter(key, spec))
            for key in keys
        ]
    )


def test_load_finds_every_stop_token(llm, folder):
    assert set(llm.stop_ids) == {3, 5, llm.tokenizer.eos_token_id}
    assert repr(llm) == f"LLM({str(folder)!r}, 0 M parameters)"


def test_tokens_of_another_model_are_refused(llm):
    with pytest.raises(UserError, match="outside the vocabulary"):  # JAX would read the last row of the embedding
        llm(np.array([[1, llm.config.vocab_size]], np.int32))


def test_logits_with_an_adapter_are_those_of_the_merged_model(llm, adapters):
    tokens = np.random.default_rng(0).integers(0, 200, (2, 3, 7))
    each = llm(tokens, adapters)
    assert each.shape == (2, 3, 7, llm.config.vocab_size)
    for i in range(2):
        merged = llm.replace(params=merge(llm.params, adapters[i]))(tokens[i])
        np.testing.assert_allclose(each[i], merged, atol=1e-4)
        np.testing.assert_allclose(llm(tokens[i], adapters[i]), merged, atol=1e-4)


def test_a_half_precision_model_answers_in_half_precision(folder):
    half = LLM.load(str(folder), dtype=jnp.bfloat16)
    assert half.params["embedding"].dtype == jnp.bfloat16
    assert half(np.ones((1, 4), int)).dtype == jnp.float32
    assert len(half.chat(["hello"], sampling=Sampling(4))) == 1


def test_kernels_of_8_bits_answer_nearly_as_whole_ones(llm, folder):
    small = LLM.load(folder, base="int8")
    assert small.params["layers"]["q_proj"]["kernel"].values.dtype == jnp.int8
    np.testing.assert_allclose(small(TOKENS), llm(TOKENS), atol=0.05 * float(jnp.std(llm(TOKENS))))
    assert not np.array_equal(small(TOKENS), llm(TOKENS))


def test_an_llm_is_an_argument_of_a_pure_function(llm, adapters):
    tokens = np.ones((2, 5), int)

    def mean_logit(adapter: Adapter, llm: LLM) -> jax.Array:
        return llm(tokens, adapter).mean()

    grads = jax.jit(jax.grad(mean_logit))(adapters, llm)
    assert jax.tree.structure(grads) == jax.tree.structure(adapters)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads))


def test_chat_renders_strings_as_training_does_and_conversations_as_they_are(llm):
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]
    assert llm.render("hi") == llm.render(turns)
    assert llm.tokenizer.decode(llm.render(turns[1:])) == "<s>user:hi</s><s>assistant:"
    assert llm.chat(["hi"], sampling=SAMPLING) == llm.chat([turns], sampling=SAMPLING)


def test_chat_gives_each_adapter_its_message_or_messages(llm, adapters):
    options = {"sampling": Sampling(8)}
    pair = llm.chat(["one", "two"], adapter=adapters, **options)
    assert pair == [llm.chat([text], adapters[i], **options)[0] for i, text in enumerate(("one", "two"))]
    groups = [["one", "two", "three"], ["four"]]
    grouped = llm.chat(groups, adapter=adapters, **options)
    assert grouped == [llm.chat(group, adapters[i], **options) for i, group in enumerate(groups)]


def test_a_base_whose_weights_several_devices_share_says_the_same(llm, adapters, folder):
    shared = LLM.load(str(folder), mesh=make_mesh(fsdp=4, tensor=2))
    kernel = shared.params["layers"]["q_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    np.testing.assert_allclose(shared(TOKENS), llm(TOKENS), atol=1e-5)
    groups = [["one", "two", "three"], ["four"]]
    answers = [model.chat(groups, adapter=adapters, sampling=Sampling(8)) for model in (shared, llm)]
    assert answers[0] == answers[1]
    assert "".join(shared.stream("hi", sampling=Sampling(8))) == llm.chat(["hi"], sampling=Sampling(8))[0]
    with pytest.raises(UserError, match="8 devices do not divide the base LLM's heads, 4"):
        LLM.load(str(folder), mesh=make_mesh(tensor=8))


@pytest.mark.parametrize("seed", range(4))
def test_streamed_pieces_are_the_answer_of_chat(llm, seed):
    """Random bytes: many pieces hold unfinished characters, and often the last one is never finished."""
    key = jax.random.key(seed)
    pieces = list(llm.stream("hi", sampling=SAMPLING, key=key))
    assert "".join(pieces) == llm.chat(["hi"], sampling=SAMPLING, key=key)[0]
    assert len(pieces) > 1
    assert all(pieces)


def test_a_character_of_several_tokens_is_streamed_whole(llm, monkeypatch):
    tokens = llm.tokenizer("aé€😀", add_special_tokens=False)["input_ids"]
    assert len(tokens) == 10
    monkeypatch.setattr("t2l_jax.llm.stream", lambda *_, **__: iter(tokens))
    assert list(llm.stream("hi")) == ["a", "é", "€", "😀"]
    monkeypatch.setattr("t2l_jax.llm.stream", lambda *_, **__: iter(tokens[:-1]))
    assert list(llm.stream("hi")) == ["a", "é", "€", "\ufffd"]


def test_bad_input_is_refused_by_name(llm, adapters):
    other = init_adapter(jax.random.key(0), replace(llm.config, width=64).lora_spec())
    tokens = np.ones((3, 5), int)
    cases = [
        (lambda: llm(tokens, other), "not its base"),
        (lambda: llm(tokens, adapters), "do not fit tokens of shape"),
        (lambda: llm(tokens[0, :2], adapters), "do not fit tokens of shape"),
        (lambda: llm.chat(["a"], adapter=other), "not its base"),
        (lambda: llm.chat(["a"], adapter=adapters), "need one prompt"),
        (lambda: llm.chat("a"), "put the string in a list"),
        (lambda: llm.chat(["hello", ["x", "y"]]), "these are both"),
        (lambda: llm.chat([[{"role": "user"}]]), "'role' and 'content'"),
        (lambda: llm.chat([[{"role": "tool", "content": ""}]]), "no tools"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
