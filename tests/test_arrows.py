"""Imports point one way: a small table of which part of the package may import which other, held against the code."""

import ast
from pathlib import Path

import t2l_jax

PACKAGE = Path(t2l_jax.__file__).parent

# Part -> the parts that it may import, beside itself. Lower parts first: nothing may import what stands below it here.
ALLOWED = {
    "errors": "",
    "schema": "errors",
    "distributed": "errors",
    "progress": "",
    "lora": "errors schema",
    "algebra": "errors lora",
    "hypernet": "errors schema lora",
    "sharding": "errors schema lora",
    "decoder": "errors schema lora sharding",
    "io": "errors schema distributed lora hypernet decoder sharding progress",
    "encoder": "errors schema lora decoder io progress sharding",
    "data": "errors schema hypernet decoder io progress",
    "llm": "errors schema lora decoder io sharding",
    "model": "errors schema lora hypernet decoder io encoder llm",
    "bulk": "errors schema distributed lora hypernet decoder io encoder model sharding progress",
    "training": "errors schema distributed lora hypernet decoder io encoder data sharding progress",
    "evaluation": "errors schema distributed lora hypernet decoder io encoder data llm model sharding progress",
    "serving": "errors schema lora algebra decoder io encoder llm model",
    "cli": "errors schema distributed lora algebra hypernet decoder io encoder data llm model bulk training evaluation "
    "sharding serving",
    "__init__": "errors lora io llm model",
    "__main__": "cli",
    "pretrained": "",
}


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: "io" of t2l_jax.io.peft."""
    return module.split(".")[1]


def imports(path: Path) -> set[str]:
    """The parts that a file imports anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names = [alias.name for alias in node.names]
            inner = {f"t2l_jax.{t2l_jax._HOMES.get(name, name)}" for name in names}  # public names have their homes
            modules |= inner if node.module == "t2l_jax" else {node.module}
    return {part_of(module) for module in modules if module.startswith("t2l_jax.")}


def arrows() -> dict[str, set[str]]:
    drawn: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        drawn.setdefault(part, set()).update(imports(path) - {part})
    return drawn


def test_every_arrow_is_allowed():
    for part, targets in arrows().items():
        assert part in ALLOWED, f"{part} is new: write down what it may import"
        beyond = targets - set(ALLOWED[part].split())
        assert not beyond, f"{part} imports {', '.join(sorted(beyond))}"


def test_the_table_has_no_circle():
    order = list(ALLOWED)
    for part, allowed in ALLOWED.items():
        assert all(order.index(other) < order.index(part) for other in allowed.split()), part
