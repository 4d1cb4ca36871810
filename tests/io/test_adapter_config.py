"""Which modules an adapter's configuration means, with what rank and alpha: against PEFT's own functions."""

import json

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key

from t2l_jax.errors import UserError
from t2l_jax.io import patterns
from t2l_jax.io.adapter_config import AdapterConfig
from t2l_jax.io.patterns import Matcher
from t2l_jax.lora import PROJECTIONS

PATHS = [
    *(f"model.layers.{layer}.{p.block}.{p.name}" for layer in (0, 1, 11, 111) for p in PROJECTIONS.values()),
    *("lm_head", "layers.1.attn.out", "encoder.layer.2.attention.self.query", "h.3.experts.1.up_proj"),
]


def read(folder, **options) -> AdapterConfig:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **options}))
    return AdapterConfig.read(folder / "adapter_config.json")


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "mlp.up_proj"]},
        {"target_modules": ["proj", "1.self_attn.v_proj", "model.layers.11.mlp.down_proj"]},
        {"target_modules": []},
        {"target_modules": r".*layers\.\d\.(self_attn\.k_proj|mlp\.up_proj)"},
        {"target_modules": "q_proj"},
        {"target_modules": r"^(?!.*mlp).*\.(?:q|v)_proj$"},
        {"target_modules": r"(?:.*?(?:self_attn|mlp).*?(?:[qkvo]|up)_proj.*)|(?:\bmodel\.layers\.[\d]{1,}\.mlp\.\w+)"},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["layers.1.self_attn.q_proj", "mlp.up_proj"]},
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.1{1,2}\..*"},
        {"target_modules": ["q_proj"], "layers_to_transform": 11},
        {"target_modules": ["q_proj", "query", "up_proj", "out"], "layers_to_transform": [1, 2]},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
        {"target_modules": ["q_proj", "query"], "layers_to_transform": [1, 2], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "query"], "layers_to_transform": [1, 2], "layers_pattern": ["h", "layer"]},
        {"target_modules": ["out", "up_proj"], "layers_to_transform": [1, 3], "layers_pattern": ["layers?", "h"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": []},
    ],
)
def test_targets_are_those_of_peft(tmp_path, options):
    theirs, ours = LoraConfig(**options), read(tmp_path, **options)
    for path in PATHS:
        found = check_target_module_exists(theirs, path)
        assert ours.adapts(path) == (bool(found) and not isinstance(found, _ExcludedModule)), path


def test_all_linear_are_all_but_the_excluded(tmp_path):
    config = read(tmp_path, target_modules="All-Linear", exclude_modules=["up_proj"])
    assert [path for path in PATHS[:7] if not config.adapts(path)] == ["model.layers.0.mlp.up_proj"]


def test_without_targets_they_are_pefts_for_our_families(tmp_path):
    assert [path.rpartition(".")[2] for path in PATHS[:7] if read(tmp_path).adapts(path)] == ["q_proj", "v_proj"]


def test_ranks_and_alphas_are_those_of_the_first_pattern_that_matches(tmp_path):
    table = {
        "^model.layers.1.self_attn.q_proj": 2,
        "_proj": 3,
        r"layers\.\d+\.mlp\.\w+": 4,
        "1.*v_proj": 5,
        "q_proj": 6,
    }
    config = read(tmp_path, r=7, lora_alpha=1.5, rank_pattern=table, alpha_pattern=table)
    seen = set()
    for path in PATHS:
        key = get_pattern_key(table, path)
        assert config.rank(path) == table.get(key, 7)
        assert config.alpha(path) == table.get(key, 1.5)
        assert config.scale(path) == config.alpha(path) / config.rank(path)
        seen.add(key)
    assert len(seen & set(table)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "field r"),
        ({"r": 8.0}, "field r"),
        ({"r": True}, "field r"),
        ({"r": 2**40}, "field r"),
        ({"lora_alpha": 10**400}, "field lora_alpha"),
        ({"lora_alpha": float("inf")}, "field lora_alpha"),
        ({"lora_alpha": "16"}, "field lora_alpha"),
        ({"use_rslora": "false"}, "field use_rslora: must be a valid boolean, got 'false'"),
        ({"use_rslora": 1}, "field use_rslora"),
        ({"rank_pattern": {"q_proj": "8"}}, "field rank_pattern.q_proj"),
        ({"alpha_pattern": [1]}, "field alpha_pattern"),
        ({"target_modules": 3}, "field target_modules"),
        ({"target_modules": ["q_proj", None]}, "field target_modules"),
        ({"exclude_modules": {"q_proj": 1}}, "field exclude_modules"),
        ({"layers_to_transform": "1"}, "field layers_to_transform"),
        ({"layers_to_transform": [1.5]}, "field layers_to_transform"),
        ({"target_modules": ".*", "layers_to_transform": [1]}, "layers_to_transform and layers_pattern need a list"),
        ({"target_modules": ["q_proj"], "layers_pattern": "layers"}, "layers_pattern needs layers_to_transform"),
        ({"peft_type": ["LORA"]}, "peft_type is \\['LORA'\\], only LORA"),
        ({"use_dora": "no"}, "'use_dora' = 'no' is not supported"),
        ({"modules_to_save": 0}, "'modules_to_save' = 0 is not supported"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(tmp_path, options, message):
    with pytest.raises(UserError, match=rf"adapter_config\.json: .*{message}"):
        read(tmp_path, **options)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        ("[[a]", "not a regular expression"),
        (r"\p{L}", "braces or classes that only some"),
        ("(?:q_proj){e<=1}", "braces or classes that only some"),
        ("[[:alpha:]]", "braces or classes that only some"),
        ("(?V1)a", "not a regular expression"),
        ("a{65535}", "repeats too often"),
        ("(((a{99}){99}){99}){99}", "repeats too often"),
        ("a{0,9999999999999}", "repeats too often"),
        ("(" * 2_000, "not a regular expression"),
        ("a" * 6_000, "more than 5,000 characters"),
    ],
)
def test_expressions_that_are_none_or_without_bound_are_refused(tmp_path, pattern, message):
    for option in ("target_modules", "exclude_modules"):
        with pytest.raises(UserError, match=rf"adapter_config\.json: field {option} holds .*{message}"):
            read(tmp_path, **{"target_modules": ".*", option: pattern}).adapts(PATHS[0])
    with pytest.raises(UserError, match=f"field rank_pattern holds .*{message}"):
        read(tmp_path, rank_pattern={pattern: 1}).rank(PATHS[0])


def test_an_expression_that_backtracks_without_end_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.01)
    matcher = Matcher(tmp_path / "x")
    with pytest.raises(UserError, match=r"x: field f holds '\(a\|aa\)\+\$', which takes too long to match"):
        matcher.fills("f", "(a|aa)+$", "a" * 80 + "b")
