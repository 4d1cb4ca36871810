"""What a config says of rotary positions: the dictionaries `rope_parameters` (transformers 5) and `rope_scaling`."""

import math
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from t2l_jax.decoder.attention import Rotary
from t2l_jax.decoder.rotary_scaling import LinearScaling, Llama3Scaling, RotaryScaling, YarnScaling
from t2l_jax.errors import UserError
from t2l_jax.schema import Count, NonNegative, Positive, Schema

Theta = Annotated[float, Field(gt=1, le=1e30)]
Fraction = Annotated[float, Field(gt=0, le=1)]

# Rope type -> the keys that it needs, and those that it may have, beside those of every type.
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, {"original_max_position_embeddings"}),
    "yarn": (
        {"factor"},
        {
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        },
    ),
}
_EVERY_TYPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_NEVER_NULL = {"rope_theta", "original_max_position_embeddings"}
_LENGTH_DEPENDENT = ("dynamic", "longrope", "su")


class Rope(Schema):
    """One such dictionary. A key that is null is absent, where transformers takes it so."""

    model_config = ConfigDict(extra="allow")

    rope_type: str | None = None
    type: str | None = None  # its older name
    rope_theta: Theta | None = None
    partial_rotary_factor: Fraction | None = None
    factor: Positive | None = None
    original_max_position_embeddings: Count | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    mscale: NonNegative | None = None
    mscale_all_dim: NonNegative | None = None
    truncate: bool = True

    def given(self) -> dict[str, Any]:
        """The declared keys that the dictionary has, with their values."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        return {name: value for name, value in values.items() if value is not None}

    def rotary(self, theta: float | None, original_length: int | None, where: str) -> Rotary:
        """The rotary positions, given the base that is meant where none is here, and the original length.

        Raises UserError that names `where` for a type that is not supported, and for keys that do not go with it.
        """
        given = self.given()
        if null := sorted(_NEVER_NULL & (self.model_fields_set - set(given))):
            raise UserError(f"{where}: {null[0]} is null; give a number or remove it")
        kind = given.get("rope_type", given.get("type", "default"))
        if kind in _LENGTH_DEPENDENT:
            raise UserError(
                f"{where}: rope type {kind!r} is not supported: its frequencies depend on the length of the longest "
                "row of a batch; take a model of another rope type"
            )
        if kind not in _KEYS:
            raise UserError(f"{where}: rope type {kind!r} is not supported; {', '.join(_KEYS)} are")
        if given.get("type", kind) != kind:
            raise UserError(f"{where}: its rope_type is {kind!r}, its type {self.type!r}; keep the one that is meant")
        needed, allowed = _KEYS[kind]
        if missing := sorted(needed - set(given)):
            raise UserError(f"{where}: rope type {kind!r} needs {', '.join(missing)}")
        if unknown := sorted(set(given) - needed - allowed - _EVERY_TYPE):
            raise UserError(f"{where}: rope type {kind!r} does not read {', '.join(unknown)}; remove what is not meant")
        base = self.rope_theta or theta
        if base is None:
            raise UserError(f"{where}: rope_theta is null; give a number or remove it")
        return Rotary(base, self._scaling(kind, original_length, where))

    def _scaling(self, kind: str, original_length: int | None, where: str) -> RotaryScaling | None:
        if kind == "default":
            return None
        assert self.factor is not None
        if kind == "linear":
            return LinearScaling(self.factor)
        if original_length is None:
            raise UserError(f"{where}: rope type {kind!r} needs original_max_position_embeddings")
        if kind == "llama3":
            assert self.low_freq_factor is not None
            assert self.high_freq_factor is not None
            if self.low_freq_factor >= self.high_freq_factor:
                raise UserError(f"{where}: its low_freq_factor must be below its high_freq_factor")
            return Llama3Scaling(self.factor, self.low_freq_factor, self.high_freq_factor, original_length)
        return YarnScaling(
            self.factor,
            original_length,
            self.beta_fast or 32.0,
            self.beta_slow or 1.0,
            self.truncate,
            self._yarn_magnitude(),
        )

    def _yarn_magnitude(self) -> float:
        assert self.factor is not None
        if self.attention_factor is not None:
            return self.attention_factor
        growth = 0.1 * math.log(max(self.factor, 1.0))
        if self.mscale and self.mscale_all_dim:
            return (self.mscale * growth + 1) / (self.mscale_all_dim * growth + 1)
        return growth + 1
