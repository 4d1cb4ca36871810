"""The authors' prompts: their templates write them, and stay with the model."""

import numpy as np
import pytest
from sakana_files import BASE, args_of, random_state, save
from tiny_published import save_base, tiny_config

import t2l_jax
from t2l_jax.decoder.template_process import PROCESS
from t2l_jax.errors import UserError
from t2l_jax.io.published import load_model, publish, save_model, tensor_shapes, with_tensors
from t2l_jax.io.sakana import import_sakana
from t2l_jax.io.sakana_chat import template_for

USER = [{"role": "user", "content": "u"}]
ANSWERED = [*USER, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("base", "prompt", "answer"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", "<s> [INST] \n\nu [/INST]", " a</s>"),
        (
            "meta-llama/Llama-3.1-8B-Instruct",
            "<s><|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "a<|eot_id|>",
        ),
        (
            "google/gemma-2-2b-it",
            "<s><start_of_turn>system\n<end_of_turn>\n<start_of_turn>user\nu<end_of_turn>\n<start_of_turn>model\n",
            "a<end_of_turn>\n",
        ),
    ],
)
def test_prompts_of_the_authors(base, prompt, answer):
    template = template_for(base)
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    system = {"role": "system", "content": ""}
    replies = PROCESS.render(template, specials, [[system, *USER], USER], answered=False)
    assert replies[0] == {"text": prompt}
    assert PROCESS.render(template, specials, [[system, *ANSWERED]], answered=True) == [{"text": prompt + answer}]
    alone = prompt.replace("\n\nu [", "u [").replace("<|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>", "")
    assert replies[1] == {"text": alone.replace("<start_of_turn>system\n<end_of_turn>\n", "")}


def test_the_template_stays_with_the_model(tmp_path):
    args = args_of("L")
    config = import_sakana(save(tmp_path / "theirs", args, random_state(args)), tmp_path / "ours")
    assert config.chat_template
    assert (tmp_path / "ours" / "chat_template.jinja").read_text() == template_for(BASE)
    publish(tmp_path / "ours", tmp_path / "published", alpha=1.0)
    assert load_model(tmp_path / "published")[0].chat_template
    assert t2l_jax.load(tmp_path / "published").chat_template == template_for(BASE)
    (tmp_path / "published" / "chat_template.jinja").write_text("other")
    other = t2l_jax.load(tmp_path / "published")
    assert other.fingerprint != t2l_jax.load(tmp_path / "ours").fingerprint
    for damage, message in ((b"\xff", "not UTF-8 text"), (b"x" * 2**21, "too much for a chat template")):
        (tmp_path / "published" / "chat_template.jinja").write_bytes(damage)
        with pytest.raises(UserError, match=rf"chat_template\.jinja: .*{message}"):
            t2l_jax.load(tmp_path / "published")
    (tmp_path / "published" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"chat_template\.jinja cannot be read"):
        t2l_jax.load(tmp_path / "published")


def test_a_base_model_whose_template_is_not_known(tmp_path):
    args = args_of("L", model_dir="org/tiny")
    folder = save(tmp_path / "theirs", args, random_state(args), base_model_name_or_path="org/tiny")
    with pytest.warns(UserWarning, match="the chat template that the authors trained org/tiny with is not known"):
        config = import_sakana(folder, tmp_path / "ours")
    assert not config.chat_template
    assert not (tmp_path / "ours" / "chat_template.jinja").exists()
    assert t2l_jax.load(tmp_path / "ours").chat_template is None


def test_the_models_template_takes_the_place_of_the_tokenizers(tmp_path):
    """Where the base model chats, and so in an evaluation."""
    base = save_base(tmp_path / "base")
    template = (
        "{% for turn in messages %}say {{ turn.content }}{% endfor %}{% if add_generation_prompt %} red{% endif %}"
    )
    config = tiny_config(base)
    zeros = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(config).items()}
    save_model(tmp_path / "m", config, with_tensors(zeros, config.lora), "", chat_template=template)
    llm = t2l_jax.load(tmp_path / "m").load_base()
    assert llm.tokenizer.decode(llm.render("blue")) == "say say blue red"
