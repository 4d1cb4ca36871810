"""Which choices an example has, and their likelihoods against transformers'."""

import jax
import numpy as np
import pytest
import torch
from tiny_models import save_tiny

from t2l_jax.data.tasks import Example, Task
from t2l_jax.decoder import Decoder
from t2l_jax.evaluation.choices import ChoiceBatch, choices, choose_likeliest
from t2l_jax.io.base import load_base
from t2l_jax.io.locations import resolve
from t2l_jax.lora import init_adapter, merge, stack

END = 3


def example(text, answer, *accepted):
    return Example(text, answer, accepted or (answer,))


def task(kind, labels=()):
    return Task("t", ("d",), (), (), kind=kind, labels=labels)


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Which?\nOptions:\n(A) one\n(B) two\n(C) three", "(B)", ("(A)", "(B)", "(C)")),
        ("Which?  (A) June (B) April.", "B.", ("A.", "B.")),
        ("Which?\n(A)one (B)two", "A", ("A", "B")),
        ("Prompt: so \nCompletion A: x \nCompletion B: y", "Completion B", ("Completion A", "Completion B")),
        ("Which?\nA: one\nB: two", "B", ("A", "B")),
        ("Passage.\n0: one\n1: 2: two", "0", ("0", "1")),
        ("Option 1: one\nOption 2: two", "2", ("1", "2")),
        ("M: Hi.\nW: Hello.\n\nA: yes\nB: no", "A", ("A", "B")),
        ("Q: Which?\n(A) ice (B) rain\nA: ", "A", ("A", "B")),
        ("Which?\nA: one\nC: three", "C", ()),
        ("Which (A)? (A) one (C) three", "(C)", ()),
        ("Which? (A) one (B) two", "A, B.", ()),
        ("Which?", "(A)", ()),
        ("Which? (A) one (B) two", "two", ()),
    ],
)
def test_options_are_written_as_the_answer_is(text, answer, expected):
    assert choices(task("multiple_choice"), example(text, answer)) == expected
    assert choices(task("generation"), example(text, answer)) == ()


def test_labels_are_choices_where_the_accepted_answers_are_among_them():
    labelled = task("classification", ("no", "yes"))
    assert choices(labelled, example("x", "yes")) == ("no", "yes")
    assert choices(labelled, example("x", "yes", "yes", "maybe")) == ()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    reference = save_tiny("smollm2, tied head", folder)
    config, params = load_base(resolve(folder))
    return reference, Decoder(config), params


def batch(prompts, picks, filler=0):
    """A batch of one task whose rows have these prompts and choices, and `filler` rows that mean nothing."""
    size, most = max(map(len, prompts)), max(len(own) for own in picks)
    room = max(len(pick) for own in picks for pick in own) + 1
    shape = (1, len(prompts) + filler, most, room)
    tokens, lengths = np.zeros((*shape[:2], size), np.int32), np.zeros(shape[:2], np.int32)
    suffixes, targets, weights = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for r, (prompt, own) in enumerate(zip(prompts, picks, strict=True)):
        lengths[0, r] = len(prompt) - 1
        tokens[0, r, size - len(prompt) + 1 :] = prompt[:-1]
        for k, pick in enumerate(own):
            suffixes[0, r, k, : len(pick) + 1] = (prompt[-1], *pick)
            targets[0, r, k, : len(pick) + 1] = (*pick, END)
            weights[0, r, k, : len(pick) + 1] = 1
    return ChoiceBatch(*(jax.numpy.asarray(x) for x in (tokens, lengths, suffixes, targets, weights)))


def likelihood(model, prompt, pick):
    """Log-probability of the choice and its end, from transformers."""
    whole = [*prompt, *pick, END]
    with torch.no_grad():
        logp = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logp[i - 1, whole[i]]) for i in range(len(prompt), len(whole)))


def test_the_likeliest_choice_and_its_margin_are_those_of_transformers(models):
    reference, decoder, params = models
    rng = np.random.default_rng(0)
    prompts = [list(rng.integers(4, 90, n)) for n in (2, 9, 5, 7)]
    picks = [[list(rng.integers(4, 90, n)) for n in sizes] for sizes in ((1, 2, 3), (2, 2), (1, 1, 1, 1), (3, 1))]
    chosen, margins = choose_likeliest(decoder, params, batch(prompts, picks, filler=2), None)
    with jax.enable_x64(True):  # as with JAX_ENABLE_X64=1
        wide = choose_likeliest(decoder, params, batch(prompts, picks, filler=2), None)
    np.testing.assert_array_equal(wide[0], chosen)
    np.testing.assert_allclose(wide[1], margins, atol=1e-4)
    for r, (prompt, own) in enumerate(zip(prompts, picks, strict=True)):
        expected = sorted((likelihood(reference, prompt, pick), k) for k, pick in enumerate(own))
        assert int(chosen[0, r]) == expected[-1][1]
        assert float(margins[0, r]) == pytest.approx(expected[-1][0] - expected[-2][0], abs=1e-3)


def test_choices_are_read_through_the_adapter(models):
    _, decoder, params = models
    spec = decoder.config.lora_spec(("q_proj", "v_proj"), rank=2)
    adapter = jax.tree.map(lambda leaf: leaf + 0.3, init_adapter(jax.random.key(0), spec))
    asked = batch([[5, 6, 7]], [[[8], [9, 10], [11]]])
    through = choose_likeliest(decoder, params, asked, stack([adapter]))
    merged = choose_likeliest(decoder, merge(params, adapter), asked, None)
    assert int(through[0][0, 0]) == int(merged[0][0, 0])
    assert float(through[1][0, 0]) == pytest.approx(float(merged[1][0, 0]), abs=1e-3)
    assert float(through[1][0, 0]) != pytest.approx(float(choose_likeliest(decoder, params, asked, None)[1][0, 0]))
