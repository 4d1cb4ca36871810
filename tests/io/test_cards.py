"""Cards of adapters: their YAML is PEFT's own, and no description gets out of its place."""

import html
import re

import peft
import pytest
import transformers
import yaml
from huggingface_hub import ModelCard

from t2l_jax.io.cards import SHOWN, AdapterCard, cell, hub_id, verbatim
from t2l_jax.lora import LoraModule, LoraSpec

SPEC = LoraSpec((LoraModule("q_proj", 16, 16), LoraModule("v_proj", 16, 8)), num_layers=2, rank=2)
CARD = AdapterCard(SPEC, "org/tiny")
HOSTILE = [
    "---\nlicense: mit\n---\n# Mine",
    "\r---\rlicense: mit\r---\r",
    "```\n# Mine\n```\n~~~\n",
    "<script>alert(1)</script><!-- ",
    "![x](http://example.org/x.png) [a](javascript:b) `c` **d** | e | f",
    "line\x0b# a\x0c# b\x85# c\u2028# d",
    "\n\n\n# Mine",
    "{{ card_data }} {% raw %}",
    "back\\slash \\| pipe",
    "www.example.org ftp://example.org ada@example.org mailto:ada@example.org xmpp:ada@example.org",
]


def data_of(text):
    return ModelCard(text).data.to_dict()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_yaml_is_pefts_own(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, head_dim=8
    )
    base = transformers.LlamaForCausalLM(config)
    base.name_or_path = base.config._name_or_path = "org/tiny"
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.create_or_update_model_card(str(tmp_path))
    theirs = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data_of(CARD.text(None)) == theirs
    generated = data_of(CARD.text("Say a."))
    assert generated.pop("tags") == sorted([*theirs.pop("tags"), "text-to-lora"])
    assert generated == theirs


@pytest.mark.parametrize("text", HOSTILE)
def test_a_description_stays_a_description(text):
    """Its lines are all indented, so markdown shows them as they are; the rest of the card is that of another one."""
    found, plain = CARD.text(text), CARD.text("Say a.")
    assert data_of(found) == data_of(plain)
    before, after = plain.split("    Say a.")
    assert found.startswith(before)
    assert found.endswith(after)
    block = found.removeprefix(before).removesuffix(after)
    assert all(line.startswith("    ") for line in re.split("\r\n|\r|\n", block))
    assert "".join(block.split()) == "".join(text.split())


def test_a_name_that_is_none_of_the_hubs_is_left_out():
    for name in (
        None,
        "/models/base",
        "C:\\base",
        "org/tiny\nlicense: mit",
        "tiny",
        "a/b/c",
        "org/ti\u00f1y",
        "-/x: y",
    ):
        assert hub_id(name) is None
        text = AdapterCard(SPEC, name).text("Say a.")
        assert data_of(text) == {
            "library_name": "peft",
            "pipeline_tag": "text-generation",
            "tags": ["lora", "text-to-lora", "transformers"],
        }
        assert "mit" not in text
    assert hub_id("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize("name", ["1.5/2", "y/n", "0x1/e5", "null/true"])
def test_a_name_of_the_hub_is_a_text_in_yaml(name):
    top = AdapterCard(SPEC, name).text(None).split("---")[1]
    assert yaml.safe_load(top)["base_model"] == name


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_is_one_line_without_markup(text):
    found = cell(text)
    assert "\n" not in found
    assert not set(found) & set("|<>[]()`*_\\#!@:/.") - set("&#;!")
    assert re.sub(r"&#(\d+);", lambda match: chr(int(match[1])), found) == " ".join(text.split())


def test_a_long_cell_is_cut():
    assert len(html.unescape(cell("x" * 1000))) == 200
    assert cell("x" * 1000).endswith("x&#46;&#46;&#46;")


def test_a_collection_has_a_table_of_its_first_adapters():
    adapters = [(f"t{index}", f"Say {index} | x.") for index in range(SHOWN + 5)]
    text = CARD.of_collection(adapters, len(adapters), "manifest.jsonl")
    assert data_of(text) == data_of(CARD.text("Say a."))
    rows = re.findall(r"^\| (t\d+) \| (.*) \|$", text, re.MULTILINE)
    assert rows[0] == ("t0", "Say 0 &#124; x&#46;")
    assert len(rows) == SHOWN
    assert "The other 5 are in `manifest.jsonl`." in text
    assert "The other" not in CARD.of_collection(adapters[:SHOWN], SHOWN, "manifest.jsonl")


def test_text_is_shown_as_it_is():
    assert verbatim("a\n\n  b\r\nc") == "    a\n    \n      b\n    c"
