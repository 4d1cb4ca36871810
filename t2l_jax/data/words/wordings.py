"""How the primitives and the tasks of the word tasks are put into words, for training and held out: wordings.toml.

A phrase of a transform or a format fits behind "the word, ..." and behind "it must be ..."; a step is an imperative
about "it". A phrase of a select is a noun phrase. A template uses some of these fields:

    {select}          the animal
    {style}           ", in capital letters and inside square brackets"; a default may be left out
    {then}            ", then shout it, then wrap it in brackets"; a default may be left out
    {transform} {format} {transform_step} {format_step}      the phrases and steps by themselves, defaults included

Nothing of the side `unseen` stands on the side `train`: neither a phrase, nor a step, nor a template.
"""

import tomllib
from importlib.resources import files
from typing import NamedTuple


class Forms(NamedTuple):
    """The wordings of one primitive. Selects have no steps: the templates' own verbs go with their noun phrases."""

    phrases: tuple[str, ...]
    steps: tuple[str, ...] = ()


class Wordings(NamedTuple):
    """One side of the split: templates, and forms by the primitive's name."""

    templates: tuple[str, ...]
    selects: dict[str, Forms]
    transforms: dict[str, Forms]
    formats: dict[str, Forms]


def _read(side: str) -> Wordings:
    content = tomllib.loads((files(__package__) / "wordings.toml").read_text("utf-8"))[side]
    groups = (
        {name: Forms(*(tuple(forms.get(form, ())) for form in Forms._fields)) for name, forms in content[group].items()}
        for group in ("selects", "transforms", "formats")
    )
    return Wordings(tuple(content["templates"]), *groups)


TRAIN, UNSEEN = _read("train"), _read("unseen")
