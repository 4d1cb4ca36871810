"""The good folder that the fuzzer damages: undamaged files of every kind, all tiny."""

import json
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import flax.serialization
from gguf_files import convert
from tiny_published import save_base, save_published, tiny_config

from t2l_jax.io.gguf_adapter import export_gguf

RECIPE = """
from t2l_jax.data.batches import BatchConfig
from t2l_jax.hypernet import HypernetConfig
from t2l_jax.training import LoopConfig
from t2l_jax.training.optimizer import OptimizerConfig
from t2l_jax.training.recipe import ComputeConfig, LoraConfig, Recipe

RECIPE = Recipe(
    trainee="hypernet", base="base", tasks=("tasks",), instruction_share=0.5, batch=BatchConfig(tasks=2, length=32),
    lora=LoraConfig(rank=2, alpha=4.0, modules=("q_proj", "v_proj")), hypernet=HypernetConfig(latent=16, head_in=16),
    loop=LoopConfig(steps=2, validate_every=2, seed=1), optimizer=OptimizerConfig(learning_rate=0.1),
    compute=ComputeConfig(accumulate=1, remat="projections"),
)
"""


def make_good(root: Path) -> None:
    """A folder of undamaged files of every kind, all tiny."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the makers' own
        _write_models(root)
    _write_data(root)


def _write_models(root: Path) -> None:
    import peft
    import transformers

    base = save_base(root / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    (root / "gguf").mkdir()
    convert(model, root / "gguf" / "model.gguf")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (base / name).is_file():
            shutil.copy(base / name, root / "gguf" / name)
    _write_shards(root / "shards", base, model)
    _write_flax(root / "flax", base, model)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(root / "adapter")
    export_gguf(root / "adapter", root / "adapter-gguf" / "adapter.gguf", str(base))
    save_published(root / "model", tiny_config())
    _write_encoder(root / "encoder")


def _write_data(root: Path) -> None:
    for name in ("one", "two"):
        _write_task(root / "tasks" / name, name)
    _write_registry(root / "registry")
    (root / "requests").mkdir()
    lines = [{"name": name, "description": f"Say {name}."} for name in ("one", "two", "three")]
    (root / "requests" / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _write_wheel(root / "wheel")
    _write_evaluation(root / "evaluation")
    (root / "recipe").mkdir()
    (root / "recipe" / "recipe.py").write_text(RECIPE)
    (root / "commands").mkdir()
    for name in ("base", "encoder", "adapter", "tasks", "requests"):
        shutil.copytree(root / name, root / "commands" / name)
    save_published(root / "commands" / "model", tiny_config("base", encoder="encoder"))
    (root / "commands" / "arguments.json").write_text(json.dumps(["models", "model"]))


def _write_shards(folder: Path, base: Path, model: Any) -> None:
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4KB")


def _write_flax(folder: Path, base: Path, model: Any) -> None:
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    tree: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        *path, last = name.split(".")
        inner = tree
        for part in path:
            inner = inner.setdefault(part, {})
        array = tensor.numpy()
        leaf = "embedding" if "embed" in name else "kernel" if array.ndim == 2 else last
        inner[leaf] = array.T if leaf == "kernel" else array
    (folder / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))


def _write_task(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    (folder / "task.yaml").write_text(
        f"name: {name}\ndescriptions:\n- Say {name}.\n- Write {name}.\nmetric: exact_match\nlabels: [one, two]\n"
    )
    for part in ("train", "test"):
        (folder / f"{part}.jsonl").write_text('{"input": "red blue", "output": "one", "outputs": ["one"]}\n' * 3)


def _write_registry(folder: Path) -> None:
    (folder / "shout" / "data").mkdir(parents=True)
    rows = "".join(json.dumps({"question": f"q{n}", "answer": f"a{n}"}) + "\n" for n in range(12))
    (folder / "shout" / "data" / "train.jsonl").write_text(rows)
    (folder / "shout" / "metadata.yaml").write_text(
        "descriptions:\n- Shout.\nds_kwargs:\n  path: data\n  split: train\nresponse_field: answer\nt2l_split: train\n"
        'user_prompt_template: "{question}"\n'
    )


def _write_wheel(folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "x-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x/__init__.py", "x/data/config.json", "x-1.0.dist-info/METADATA"):
            archive.writestr(name, "Metadata-Version: 2.1\nName: x\nVersion: 1.0\n")


def _write_encoder(folder: Path) -> None:
    import transformers
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "say", "red", "blue", "."]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    inner = folder / "inner"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(inner)
    transformers.BertModel(config).save_pretrained(inner)
    SentenceTransformer(str(inner), device="cpu").save(str(folder))  # with the mean of its tokens
    shutil.rmtree(inner)


def _write_evaluation(folder: Path) -> None:
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"model": "a", "examples": 2}))
    records = [{"key": f"k{n}", "score": 1.0, "prediction": "x", "split": "train"} for n in range(4)]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "environment.json").write_text(json.dumps({"sessions": [{"start": 0, "seconds": 1.5}]}))
