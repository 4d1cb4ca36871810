import jax
import numpy as np
import pytest

from t2l_jax.data.batches import BUCKET, Sampler, TrainingTask, collate
from t2l_jax.data.prompts import Encoded
from t2l_jax.errors import UserError
from t2l_jax.objectives import Batch


def training_task(index: int, descriptions: int = 3, examples: int = 4) -> TrainingTask:
    """A task that can be told from its embeddings and its prompts."""
    z = np.stack([np.asarray([index, wording], np.float32) for wording in range(descriptions)])
    return TrainingTask(f"t{index}", z, tuple(Encoded((index + 1, n + 1), (50 + n, 2)) for n in range(examples)))


def sampler(tasks: int = 6, tasks_per_batch: int = 3, examples_per_task: int = 2, seed: int = 0) -> Sampler:
    return Sampler([training_task(index) for index in range(tasks)], tasks_per_batch, examples_per_task, seed)


def assert_equal(first: Batch, second: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_batch_depends_on_seed_and_step_alone():
    one, other = sampler(), sampler()
    expected = [one.draw(step) for step in range(4)]
    for step in (3, 0, 2, 1, 3):
        assert_equal(other.draw(step), expected[step])
    assert any(np.any(expected[0].tokens != batch.tokens) for batch in expected[1:])
    assert any(np.any(sampler(seed=1).draw(step).tokens != expected[step].tokens) for step in range(4))


def test_tasks_are_drawn_without_replacement_and_z_and_rows_are_theirs():
    counts, wordings, examples = np.zeros(6), set(), set()
    for step in range(60):
        batch = sampler().draw(step)
        assert len(set(batch.task_ids)) == 3
        np.testing.assert_array_equal(batch.z[:, 0], batch.task_ids)
        np.testing.assert_array_equal(batch.tokens[:, :, 0], np.repeat(batch.task_ids[:, None] + 1, 2, axis=1))
        counts[batch.task_ids] += 1
        wordings |= set(batch.z[:, 1])
        examples |= set(batch.tokens[:, :, 1].flatten())
    assert np.all(np.abs(counts - 30) < 15)  # 180 draws over 6 tasks
    assert wordings == {0, 1, 2}
    assert examples == {1, 2, 3, 4}


def test_a_batch_of_every_task_holds_each_once():
    assert sorted(sampler(tasks_per_batch=6).draw(0).task_ids) == list(range(6))


def test_collate_places_tokens_and_targets():
    """By hand: a prompt of 3 and an answer of 2, and a prompt of 1 and an answer of 3."""
    rows = [[Encoded((5, 6, 7), (8, 2))], [Encoded((9,), (10, 11, 2))]]
    batch = collate(rows, np.zeros((2, 4), np.float32), np.asarray([4, 1]))
    assert batch.tokens.shape == batch.segments.shape == (2, 1, BUCKET)
    np.testing.assert_array_equal(batch.tokens[:, 0, :5], [[5, 6, 7, 8, 0], [9, 10, 11, 0, 0]])
    np.testing.assert_array_equal(batch.segments[:, 0, :5], [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(batch.at[:, 0, :3], [[2, 3, 0], [0, 1, 2]])
    np.testing.assert_array_equal(batch.targets[:, 0, :3], [[8, 2, 0], [10, 11, 2]])
    np.testing.assert_allclose(batch.weights[:, 0, :3], [[1 / 4, 1 / 4, 0], [1 / 6, 1 / 6, 1 / 6]])
    for padding in (batch.tokens[..., 5:], batch.segments[..., 5:], batch.weights[..., 3:]):
        assert not padding.any()
    np.testing.assert_array_equal(batch.task_ids, [4, 1])


def random_rows(tasks: int, rows: int) -> list[list[Encoded]]:
    rng = np.random.default_rng(0)

    def some(most: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(1, 60, size=rng.integers(1, most))))

    return [[Encoded(some(20), some(6)) for _ in range(rows)] for _ in range(tasks)]


def test_every_supervised_position_predicts_the_token_after_it():
    rows = random_rows(4, 3)
    batch = collate(rows, np.zeros((4, 2), np.float32), np.arange(4))
    for t, row in enumerate(rows):
        for r, (prompt, answer) in enumerate(row):
            whole = (*prompt, *answer)
            count = int((batch.segments[t, r] > 0).sum())
            assert tuple(batch.tokens[t, r, :count]) == whole[:-1]
            supervised = batch.weights[t, r] > 0
            assert tuple(batch.targets[t, r, supervised]) == answer
            assert [whole[position + 1] for position in batch.at[t, r, supervised]] == list(answer)


def test_every_example_weighs_the_same_and_all_together_one():
    batch = collate(random_rows(4, 3), np.zeros((4, 2), np.float32), np.arange(4))
    np.testing.assert_allclose(batch.weights.sum(-1), np.full((4, 3), 1 / 12), rtol=1e-6)


@pytest.mark.parametrize(("prompt", "answer", "length", "supervised"), [(1, 8, 8, 8), (2, 8, 16, 8), (1, 9, 16, 16)])
def test_lengths_are_rounded_up_to_buckets(prompt, answer, length, supervised):
    """The last answer token is predicted, never read: a prompt of 1 and an answer of 8 fill a bucket of 8."""
    rows = [[Encoded((1,) * prompt, (2,) * answer)]]
    batch = collate(rows, np.zeros((1, 2), np.float32), np.arange(1))
    assert batch.tokens.shape[-1] == length
    assert batch.targets.shape[-1] == supervised


def test_arrays_are_of_the_types_that_the_device_takes():
    batch = sampler().draw(0)
    assert {leaf.dtype for leaf in (batch.tokens, batch.segments, batch.at, batch.targets, batch.task_ids)} == {
        np.dtype(np.int32)
    }
    assert {leaf.dtype for leaf in (batch.z, batch.weights)} == {np.dtype(np.float32)}


def test_a_batch_cannot_have_more_tasks_than_there_are():
    with pytest.raises(UserError, match="batch of 7 tasks needs as many training tasks, there are 6"):
        sampler(tasks_per_batch=7)


def test_a_task_needs_examples():
    with pytest.raises(UserError, match="task t1: 0 examples"):
        Sampler([training_task(0), training_task(1, examples=0)], 1, 1, 0)


def test_an_example_that_is_too_long_is_named_by_its_task():
    long = TrainingTask("long", np.zeros((1, 2), np.float32), (Encoded((1,) * 9, (2,)),))
    with pytest.raises(UserError, match=r"task long: 1 examples, the longest of 10 tokens.*at most 9"):
        Sampler([training_task(0), long], 1, 1, 0, max_length=9)
    Sampler([training_task(0), long], 1, 1, 0, max_length=10)
