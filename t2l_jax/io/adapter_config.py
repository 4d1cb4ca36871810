"""`adapter_config.json`: which modules a LoRA adapts, with what rank and alpha, as PEFT understands it.

An option that changes the forward pass in a way that we do not support is an error that names it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from t2l_jax.errors import UserError
from t2l_jax.io.files import read_json
from t2l_jax.io.patterns import Matcher
from t2l_jax.schema import Count, Schema, Several, checked, shown

Alpha = Annotated[float, Field(ge=-1e30, le=1e30)]
Names = str | Several[str] | None


class _Options(Schema):
    """The options that are read. PEFT's defaults; of an unset target_modules those of all our families."""

    peft_type: Literal["LORA"]
    base_model_name_or_path: str | None = None
    r: Count = 8
    lora_alpha: Alpha = 8
    use_rslora: bool | None = False
    rank_pattern: dict[str, Count] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    target_modules: Names = None
    exclude_modules: Names = None
    layers_to_transform: int | Several[int] | None = None
    layers_pattern: Names = None


_DEFAULT_TARGETS = ("q_proj", "v_proj")
# Options without effect on the forward pass, and those that are read.
_DESCRIPTIVE = {
    *("auto_mapping", "eva_config", "inference_mode", "lora_dropout", "megatron_core", "peft_version"),
    *("qalora_group_size", "revision", "runtime_config", "task_type"),
    *_Options.model_fields,
}
# Values with which any other option, known or of a later PEFT, has no effect. Other initialisations than these also
# change the base model's weights.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's configuration says of a module, which is named by its path in the model."""

    options: _Options
    matcher: Matcher

    @classmethod
    def read(cls, file: Path) -> "AdapterConfig":
        """Raises UserError for a file that is damaged, and for the first option that is not supported."""
        values = read_json(file)
        if values.get("peft_type") != "LORA":
            raise UserError(f"{file}: peft_type is {shown(values.get('peft_type'))}, only LORA is supported")
        for name, value in values.items():
            # Of equal numbers 0 is no flag: false and 0 are equal to Python.
            neutral = _NEUTRAL.get(name, (None, False, [], {}))
            if name not in _DESCRIPTIVE and not any(value == other and type(value) is type(other) for other in neutral):
                raise UserError(f"{file}: the option {shown(name)} = {shown(value)} is not supported")
        options = checked(_Options, values, str(file))
        if isinstance(options.target_modules, str) and (
            options.layers_to_transform is not None or options.layers_pattern is not None
        ):
            raise UserError(f"{file}: layers_to_transform and layers_pattern need a list of target_modules")
        if options.layers_pattern and options.layers_to_transform is None:
            raise UserError(f"{file}: layers_pattern needs layers_to_transform")
        return cls(options, Matcher(file))

    def adapts(self, path: str) -> bool:
        """Whether PEFT gives the linear module at this path, which is not the output head, an adapter."""
        targets, excluded = self.options.target_modules, self.options.exclude_modules
        if excluded and self._among("exclude_modules", excluded, path):
            return False
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return True
        return self._among("target_modules", _DEFAULT_TARGETS if targets is None else targets, path) and (
            isinstance(targets, str) or self._in_layer(path)
        )

    def rank(self, path: str) -> int:
        """r of the module: that of the first pattern that matches its path or the end of it after a dot."""
        return self._first("rank_pattern", self.options.rank_pattern, path, self.options.r)

    def scale(self, path: str) -> float:
        """The factor of B A: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        rank = self.rank(path)
        return self.alpha(path) / (math.sqrt(rank) if self.options.use_rslora else rank)

    def alpha(self, path: str) -> float:
        """lora_alpha of the module, found as its rank is."""
        return self._first("alpha_pattern", self.options.alpha_pattern, path, self.options.lora_alpha)

    def _first(self, option: str, patterns: dict[str, Any] | None, path: str, default: Any) -> Any:
        found = (value for key, value in (patterns or {}).items() if self.matcher.ends(option, key, path))
        return next(found, default)

    def _among(self, option: str, names: str | tuple[str, ...], path: str) -> bool:
        """Whether a list has the path or its end after a dot, or a regular expression matches it whole."""
        if isinstance(names, str):
            return self.matcher.fills(option, names, path)
        return any(path == name or path.endswith(f".{name}") for name in names)

    def _in_layer(self, path: str) -> bool:
        """Whether the module is in one of the layers of layers_to_transform; unless told, a path's first number."""
        layers, patterns = self.options.layers_to_transform, self.options.layers_pattern
        if layers is None or layers == ():
            return True
        for pattern in (patterns,) if isinstance(patterns, str) else patterns or (None,):
            layer = self.matcher.layer(pattern or None, path)
            if layer is not None:
                return layer in ((layers,) if isinstance(layers, int) else layers)
        return False
