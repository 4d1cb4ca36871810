"""What a run reads of its tasks, with a text encoder that is a table of numbers."""

import numpy as np
import pytest

from t2l_jax.data.batches import BatchConfig
from t2l_jax.data.tasks import Example, Task
from t2l_jax.decoder.chat_template import render
from t2l_jax.errors import UserError
from t2l_jax.io.base import load_tokenizer
from t2l_jax.training.material import prompt_modes, training_tasks, validation_batches

TEXTS = ("red", "blue", "green")


class LengthEncoder:
    """A text's z is its length."""

    name = "length"
    dim = 1
    adapter = None
    fingerprint = "length"

    def embed(self, texts, cache=None):
        return np.asarray([[len(text)] for text in texts], np.float32)


def make_task(number: int, wordings: int = 1, last: str = "green") -> Task:
    examples = tuple(Example(f"{number} {text}", text, (text,)) for text in (*TEXTS[:2], last))
    texts = tuple("x" * (10 * number + wording + 1) for wording in range(wordings))
    return Task(f"t{number}", texts, examples, examples, unseen_descriptions=("y" * (number + 1),))


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(str(smollm2))


def test_prompt_modes():
    assert [prompt_modes(share) for share in (0.0, 0.4, 1.0)] == [
        ("instance",),
        ("instance", "instruction"),
        ("instruction",),
    ]
    for share in (-0.1, 1.1):
        with pytest.raises(UserError, match=f"instruction_share must be between 0 and 1, got {share}"):
            prompt_modes(share)


def test_every_task_has_its_own_embeddings_and_tables(tokenizer, tmp_path):
    tasks = [make_task(number, wordings=number + 1) for number in range(3)]
    modes = prompt_modes(0.5)
    found = training_tasks(tasks, (1.0, 2.0, 3.0), tokenizer, LengthEncoder(), modes, tmp_path)
    assert [(task.name, task.weight) for task in found] == [("t0", 1.0), ("t1", 2.0), ("t2", 3.0)]
    for number, task in enumerate(found):
        np.testing.assert_array_equal(task.embeddings[:, 0], [10 * number + n + 1 for n in range(number + 1)])
        wordings = tasks[number].descriptions
        for index, text in enumerate(TEXTS):
            prompt = f"{number} {text}"
            wanted = {"instance": None, "instruction": wordings[index % len(wordings)]}
            for mode, wording in wanted.items():
                assert list(task.examples[mode][index].prompt) == render(tokenizer, prompt, wording)


def test_validation_batches_share_the_tasks_evenly_and_are_filled_up(tokenizer, tmp_path):
    """Five tasks, one without an example that fits, in batches of three: two and two, and an empty one in each."""
    long = "word " * 60
    whole = [make_task(number) for number in range(4)]
    unfit = Task("t4", ("x",), (), (Example(long, "a", ("a",)),))
    shape = BatchConfig(3, 1, 64)
    found = validation_batches(
        {"seen": [*whole, unfit], "unseen": []}, shape, tokenizer, LengthEncoder(), ("instance",), tmp_path
    )
    assert list(found) == ["seen"]
    first, second = found["seen"]
    assert [list(batch.task_ids) for batch in (first, second)] == [[0, 1, 0], [2, 3, 2]]
    for batch in (first, second):
        np.testing.assert_array_equal(batch.z[:, 0], batch.task_ids + 1)  # the wordings that are not trained on
        assert not batch.segments[2].any()
        assert batch.segments[:2].max() >= 2
        np.testing.assert_allclose(batch.weights.sum((1, 2)), [0.5, 0.5, 0], rtol=1e-5)


def test_each_mode_that_is_trained_is_validated(tokenizer, tmp_path):
    splits = {"seen": [make_task(1)], "unseen tasks": [make_task(2)]}
    shape = BatchConfig(1, 1, 64)
    found = validation_batches(splits, shape, tokenizer, LengthEncoder(), prompt_modes(0.5), tmp_path)
    assert list(found) == ["seen, instance", "seen, instruction", "unseen tasks, instance", "unseen tasks, instruction"]
    (batch,) = found["unseen tasks, instruction"]
    start = tokenizer.decode(batch.tokens[0, 0][np.isin(batch.segments[0, 0], (1, 2))])
    assert "user\nyyy\n\n2 green" in start  # the last test example comes first
