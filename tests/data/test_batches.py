"""Batches of packed rows: drawn by seed and step alone, full, and every example whole and findable in its row."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from t2l_jax.data.batch import ROW_FIELDS, Batch
from t2l_jax.data.batches import (
    LOOKAHEAD,
    BatchConfig,
    Packed,
    Sampler,
    TokenTable,
    TrainingTask,
    collate,
    draw_tasks,
    pack,
)
from t2l_jax.data.prompts import Encoded
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition


def training_task(index: int, examples: int = 40, weight: float = 1.0) -> TrainingTask:
    """A task that can be told from its embeddings and its prompts, and the mode from the prompt's second token."""
    z = np.stack([np.asarray([index, wording], np.float32) for wording in range(3)])
    tables = {
        mode: TokenTable.of(
            [Encoded((index + 1, mark, n + 100, *[5] * (n % 3)), (50 + n % 7, 2)) for n in range(examples)]
        )
        for mode, mark in (("instance", 11), ("instruction", 12))
    }
    return TrainingTask(f"t{index}", Condition(z, np.full(3, index, np.int32)), tables, weight)


def conditions(count: int) -> Condition:
    return Condition(np.zeros((count, 2), np.float32), np.arange(count, dtype=np.int32))


def sampler(tasks: int = 6, shape: tuple[int, int, int] = (3, 2, 24), seed: int = 0, share: float = 0.0) -> Sampler:
    return Sampler([training_task(index) for index in range(tasks)], BatchConfig(*shape), seed, share)


def examples_of(batch: Batch) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """(task, tokens read, targets) of every example of a batch, found by its segments."""
    found = []
    for task, row in np.ndindex(batch.tokens.shape[:2]):
        segments, real = batch.segments[task, row], batch.weights[task, row] > 0
        shared = tuple(batch.tokens[task, row][segments == 1])
        for segment in range(2, segments.max() + 1):
            here = real & (segments == segment)
            tokens = (*shared, *batch.tokens[task, row][segments == segment])
            found.append((int(batch.condition.task[task]), tuple(tokens), tuple(batch.targets[task, row][here])))
    return found


def test_a_batch_depends_on_seed_and_step_alone():
    one, other = sampler(share=0.5), sampler(share=0.5)
    expected = [one.draw(step) for step in range(4)]
    for step in (3, 0, 2, 1, 3):
        jax.tree.map(np.testing.assert_array_equal, other.draw(step), expected[step])
    assert all(np.any(expected[0].tokens != batch.tokens) for batch in expected[1:])
    assert all(np.any(sampler(seed=1, share=0.5).draw(n).tokens != expected[n].tokens) for n in range(4))


def test_tasks_are_drawn_without_replacement_and_z_and_rows_are_theirs():
    counts, wordings, seen = np.zeros(6), set(), set()
    for step in range(60):
        batch = sampler().draw(step)
        assert len(set(batch.condition.task)) == 3
        np.testing.assert_array_equal(batch.condition.z[:, 0], batch.condition.task)
        counts[batch.condition.task] += 1
        wordings |= set(batch.condition.z[:, 1])
        examples = examples_of(batch)
        assert all(tokens[:2] == (task + 1, 11) for task, tokens, _ in examples)
        assert len({(task, tokens[2]) for task, tokens, _ in examples}) == len(examples)  # no example twice
        seen |= {tokens[2] - 100 for _, tokens, _ in examples}
    assert np.all(np.abs(counts - 30) < 15)  # 180 draws over 6 tasks
    assert wordings == {0, 1, 2}
    assert seen == set(range(40))


def test_a_batch_of_every_task_holds_each_once():
    for step in range(20):
        assert sorted(sampler(shape=(6, 1, 24)).draw(step).condition.task) == list(range(6))


def test_tasks_are_drawn_as_often_as_their_chances_say():
    chances = np.asarray([1.0, 0.5, 0.25, 0.25])
    counts = np.zeros(4)
    for seed in range(2000):
        chosen = draw_tasks(np.random.default_rng(seed), chances, 2)
        assert len(set(chosen)) == 2
        counts[chosen] += 1
    np.testing.assert_allclose(counts / 2000, chances, atol=0.04)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_examples_with_an_instruction(share):
    found = sampler(share=share)
    marks = [tokens[1] for step in range(40) for _, tokens, _ in examples_of(found.draw(step))]
    assert set(marks) <= {11, 12}
    assert np.mean(np.asarray(marks) == 12) == pytest.approx(share, abs=0.1 if 0 < share < 1 else 0)


def test_the_examples_of_a_task_in_a_batch_are_in_one_mode():
    for step in range(10):
        marks = {(task, tokens[1]) for task, tokens, _ in examples_of(sampler(share=0.5).draw(step))}
        assert len(marks) == 3


def test_an_example_goes_into_the_fullest_row_that_it_fits_in():
    """By hand: lengths 5, 4, 3, 2, 2, 4 in two rows of 8: 5 + 3 and 4 + 2 + 2."""
    table = TokenTable.of([Encoded((index,) * (need - 1), (9, 2)) for index, need in enumerate((5, 4, 3, 2, 2, 4))])
    rows = pack(table, np.arange(6), 2, 8).rows
    assert [[int(example.prompt[0]) for example in row] for row in rows] == [[0, 2], [1, 3, 4]]


def test_what_all_prompts_begin_with_is_taken_once_in_a_row():
    """By hand: prompts 1 2 3 x; of three examples of 5 tokens a row of 9 holds 3 + 2 + 2 + 2."""
    table = TokenTable.of([Encoded((1, 2, 3, index), (9, 2)) for index in (5, 6, 7, 8)])
    assert table.shared == 3
    packed = pack(table, np.arange(4), 1, 9)
    assert tuple(packed.shared) == (1, 2, 3)
    assert [tuple(example.prompt) for example in packed.rows[0]] == [(5,), (6,), (7,)]
    batch = collate([packed], conditions(1), 9)
    np.testing.assert_array_equal(batch.tokens[0, 0], [1, 2, 3, 5, 9, 6, 9, 7, 9])
    np.testing.assert_array_equal(batch.segments[0, 0], [1, 1, 1, 2, 2, 3, 3, 4, 4])
    np.testing.assert_array_equal(batch.positions[0, 0], [0, 1, 2, 3, 4, 3, 4, 3, 4])
    np.testing.assert_array_equal(batch.targets[0, 0], [0, 0, 0, 9, 2, 9, 2, 9, 2])


def test_without_a_shared_prefix_every_example_is_a_segment_of_its_own():
    """By hand: of three examples of 5 tokens a row of 12 holds two."""
    tables = {"instance": TokenTable.of([Encoded((1, 2, 3, index), (9, 2)) for index in (5, 6, 7)])}
    task = TrainingTask("t", conditions(1), tables)
    batch = Sampler([task], BatchConfig(1, 1, 12, shared_prefix=False), 0).draw(0)
    np.testing.assert_array_equal(batch.segments[0, 0], [2] * 5 + [3] * 5 + [0] * 2)
    np.testing.assert_array_equal(batch.positions[0, 0], [*range(5), *range(5), 0, 0])
    np.testing.assert_array_equal(batch.tokens[0, 0][[0, 1, 2, 5, 6, 7]], [1, 2, 3] * 2)


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [([(1, 2, 3), (1, 2, 3)], 2), ([(1, 2), (1, 2, 3)], 1), ([(4, 2, 3), (1, 2, 3)], 0), ([(7,)], 0), ([], 0)],
)
def test_the_last_token_of_a_prompt_is_never_shared(prompts, shared):
    assert TokenTable.of([Encoded(prompt, (9, 2)) for prompt in prompts]).shared == shared


def test_filling_ends_after_so_many_examples_that_did_not_fit():
    lengths = [6, *[5] * (LOOKAHEAD - 1), 2, *[5], 2]
    table = TokenTable.of([Encoded((index,) * (need - 1), (9, 2)) for index, need in enumerate(lengths)])
    (row,) = pack(table, np.arange(len(lengths)), 1, 10).rows
    assert [int(example.prompt[0]) for example in row] == [0, LOOKAHEAD]


def test_examples_longer_than_a_row_are_never_drawn_and_counted():
    lengths = [3, 30, 3, 9]
    examples = TokenTable.of([Encoded((index,) * (need - 1), (9, 2)) for index, need in enumerate(lengths)])
    found = Sampler([TrainingTask("t", conditions(1), {"instance": examples})], BatchConfig(1, 2, 8), 0)
    assert found.too_long == (2, 4)
    for step in range(5):
        assert [len(tokens) for _, tokens, _ in examples_of(found.draw(step))] == [3, 3]


def test_a_table_gives_back_its_examples():
    examples = [Encoded((1, 2, 3), (4, 5)), Encoded((6,), (7,))]
    table = TokenTable.of(examples)
    assert [tuple(map(tuple, table[index])) for index in range(len(table))] == examples
    np.testing.assert_array_equal(table.lengths, [4, 1])
    assert len(TokenTable.of([])) == 0


def test_collate_places_tokens_and_targets():
    """By hand: two examples in a row, one in another, and an empty row."""
    rows = [[[Encoded((5, 6, 7), (8, 2)), Encoded((3,), (4, 4, 2))], []], [[Encoded((9,), (10, 11, 2))], []]]
    batch = collate([Packed((), task) for task in rows], conditions(2), 16)
    assert {getattr(batch, name).shape for name in ROW_FIELDS} == {(2, 2, 16)}
    np.testing.assert_array_equal(batch.tokens[0, 0, :8], [5, 6, 7, 8, 3, 4, 4, 0])
    np.testing.assert_array_equal(batch.segments[0, 0, :8], [2, 2, 2, 2, 3, 3, 3, 0])
    np.testing.assert_array_equal(batch.positions[0, 0, :8], [0, 1, 2, 3, 0, 1, 2, 0])
    np.testing.assert_array_equal(batch.targets[0, 0, :8], [0, 0, 8, 2, 4, 4, 2, 0])
    np.testing.assert_allclose(batch.weights[0, 0, :8], [0, 0, 1 / 8, 1 / 8, 1 / 12, 1 / 12, 1 / 12, 0])
    np.testing.assert_array_equal(batch.tokens[1, 0, :4], [9, 10, 11, 0])
    np.testing.assert_allclose(batch.weights[1, 0, :4], [1 / 6, 1 / 6, 1 / 6, 0])
    for array in (getattr(batch, name) for name in ROW_FIELDS):
        assert not array[:, 1].any()
        assert not array[0, 0, 7:].any()
    np.testing.assert_array_equal(batch.condition.task, [0, 1])


def random_rows(tasks: int, rows: int, length: int) -> list[Packed]:
    rng = np.random.default_rng(0)

    def some(most: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(1, 60, size=rng.integers(1, most))))

    examples = TokenTable.of([Encoded(some(20), some(6)) for _ in range(400)])
    orders = rng.permutation(400).reshape(tasks, -1)
    return [pack(examples, order, rows, length) for order in orders]


def test_every_supervised_position_predicts_the_token_after_it():
    rows = random_rows(4, 3, 64)
    batch = collate(rows, conditions(4), 64)
    found = examples_of(batch)
    expected = [(t, (*p, *a[:-1]), tuple(a)) for t, task in enumerate(rows) for row in task.rows for p, a in row]
    assert len(expected) > 30
    assert found == expected


def test_tasks_weigh_the_same_and_so_do_the_examples_of_a_task():
    """Also beside a task without examples, with which validation fills a batch up."""
    rows = [*random_rows(4, 3, 64), Packed((), [[], [], []])]
    batch = collate(rows, conditions(5), 64)
    np.testing.assert_allclose(batch.weights.sum((1, 2)), [1 / 4] * 4 + [0], rtol=1e-5)
    for task in range(4):
        count = sum(map(len, rows[task].rows))
        for row in range(3):
            segments = np.where(batch.weights[task, row] > 0, batch.segments[task, row], 0)
            sums = np.bincount(segments, batch.weights[task, row])[2:]
            np.testing.assert_allclose(sums, 1 / (4 * count), rtol=1e-5)


def test_arrays_are_of_the_types_that_the_device_takes():
    batch = sampler().draw(0)
    whole = (batch.tokens, batch.segments, batch.positions, batch.targets, batch.condition.task)
    assert {leaf.dtype for leaf in whole} == {np.dtype(np.int32)}
    assert {leaf.dtype for leaf in (batch.condition.z, batch.weights)} == {np.dtype(np.float32)}


def test_a_batch_cannot_have_more_tasks_than_there_are():
    with pytest.raises(UserError, match="batch of 7 tasks needs at least 7 training tasks, there are 6"):
        sampler(shape=(7, 1, 24))


def test_a_weight_that_asks_for_a_task_more_than_once_a_batch_is_refused():
    tasks = [training_task(0, weight=3.0), training_task(1), training_task(2)]
    with pytest.raises(UserError, match=r"task t0 would come 1\.2 times in a batch of 2 tasks"):
        Sampler(tasks, BatchConfig(2, 1, 24), 0)


def test_a_cut_prompt_loses_its_first_tokens_and_the_answer_stays_whole():
    rng = np.random.default_rng(0)
    examples = [
        Encoded(tuple(rng.integers(1, 99, size=prompt)), tuple(rng.integers(1, 99, size=answer)))
        for prompt, answer in ((3, 2), (20, 5), (9, 3), (1, 12), (30, 11), (4, 8), (12, 1))
    ]
    table = TokenTable.of(examples)
    cut = table.cut(11)
    for (prompt, answer), found in zip(examples, (cut[index] for index in range(len(cut))), strict=True):
        # 11 tokens are read: all but the answer's last. The prompt's last one predicts the answer, so it stays.
        kept = max(1, min(len(prompt), 12 - len(answer)))
        assert (tuple(found.prompt), tuple(found.answer)) == (prompt[len(prompt) - kept :], answer)
    assert list(cut.lengths) == [4, 11, 11, 12, 11, 11, 11]  # the fourth answer alone has 12
    assert list(table.lengths) == [4, 24, 11, 12, 40, 11, 12]  # the table itself is as before
    assert table.cut(40) is table


def test_a_task_needs_an_example_that_fits():
    with pytest.raises(UserError, match="task t1: none of its examples fits in a row of 24"):
        Sampler([training_task(0), training_task(1, examples=0)], BatchConfig(1, 1, 24), 0)
    with pytest.raises(UserError, match="task t0: none of its examples fits in a row of 3 tokens"):
        sampler(shape=(1, 1, 3))


@pytest.mark.parametrize("field", ["tasks", "rows", "length"])
def test_a_batch_of_nothing_is_refused(field):
    with pytest.raises(UserError, match=f"batch: field {field}: must be at least 1, got 0"):
        BatchConfig(**{field: 0})


def test_a_batch_beyond_any_memory_is_refused():
    with pytest.raises(UserError, match="are 68,719,476,736 tokens: a batch holds at most 67,108,864"):
        BatchConfig(tasks=2**12, rows=2**12, length=2**12)


def test_a_task_is_never_drawn_in_a_mode_that_none_of_its_examples_fits():
    """Instances of 3 tokens and instructions of 30 in rows of 12."""
    tables = {
        "instance": TokenTable.of([Encoded((1, index), (9, 2)) for index in range(8)]),
        "instruction": TokenTable.of([Encoded((1, *[index] * 28), (9, 2)) for index in range(8)]),
    }
    found = Sampler([TrainingTask("t", conditions(1), tables)], BatchConfig(1, 1, 12), 0, 0.9)
    assert all((batch.weights > 0).any() for batch in map(found.draw, range(10)))


# --- without packing


def one_example_each(rows: int, instances: bool, tasks: int = 3, **changes) -> Sampler:
    """Task n has the instances [n, 0], [n, 1], ..."""
    made = [training_task(index, **changes) for index in range(tasks)]
    if instances:
        made = [
            replace(
                task,
                instances=np.asarray([[index, n] for n in range(len(task.examples["instance"]))], np.float32),
            )
            for index, task in enumerate(made)
        ]
    return Sampler(made, BatchConfig(2, rows, 24, packing=False), 0)


def test_without_packing_a_row_holds_one_example():
    """And for rows of one task that is the paper's batch: an example of each task, a description drawn for each."""
    wordings = set()
    for step in range(20):
        for rows in (1, 3):
            batch = one_example_each(rows, instances=False).draw(step)
            assert batch.tokens.shape == (2, rows, 24)
            assert set(np.unique(batch.segments)) == {0, 2}
            np.testing.assert_array_equal(batch.positions[:, :, :3], np.broadcast_to([0, 1, 2], (2, rows, 3)))
            np.testing.assert_allclose(batch.weights.sum(-1), 1 / (2 * rows), rtol=1e-6)
            read = examples_of(batch)
            assert len({tokens for _, tokens, _ in read}) == len(read) == 2 * rows
            assert all(tokens[0] == task + 1 for task, tokens, _ in read)
        wordings |= set(batch.condition.z[:, 1])
    assert wordings == {0, 1, 2}


@pytest.mark.parametrize("rows", [1, 3])
def test_an_example_with_an_instance_is_a_part_of_its_own(rows):
    found = one_example_each(rows, instances=True)
    seen = set()
    for step in range(20):
        batch = found.draw(step)
        jax.tree.map(np.testing.assert_array_equal, batch, one_example_each(rows, instances=True).draw(step))
        assert batch.tokens.shape == (2 * rows, 1, 24)
        np.testing.assert_allclose(batch.weights.sum((1, 2)), 1 / (2 * rows), rtol=1e-6)
        for at, (task, number) in enumerate(batch.condition.instance):
            assert batch.condition.task[at] == batch.condition.z[at, 0] == task
            assert batch.tokens[at, 0, 0] == task + 1
            assert batch.tokens[at, 0, 2] == number + 100  # the example's own tokens
            seen.add((task, number))
    assert len(seen) > 20 * rows


def test_a_task_with_fewer_examples_than_rows_has_parts_without_one():
    batch = one_example_each(3, instances=True, tasks=2, examples=2).draw(0)
    np.testing.assert_allclose(batch.weights.sum((1, 2)), [1 / 4, 1 / 4, 0, 1 / 4, 1 / 4, 0], rtol=1e-6)
    plain = one_example_each(3, instances=False, tasks=2, examples=2).draw(0)
    np.testing.assert_allclose(plain.weights.sum(-1), np.broadcast_to([1 / 4, 1 / 4, 0], (2, 3)), rtol=1e-6)


def test_without_packing_examples_longer_than_a_row_are_never_drawn():
    lengths = [3, 30, 3, 9]
    examples = TokenTable.of([Encoded((index,) * (need - 1), (9, 2)) for index, need in enumerate(lengths)])
    task = TrainingTask("t", conditions(1), {"instance": examples}, instances=np.zeros((4, 2), np.float32))
    for step in range(8):
        batch = Sampler([task], BatchConfig(1, 1, 8, packing=False), 0).draw(step)
        assert [len(tokens) for _, tokens, _ in examples_of(batch)] == [3]


# --- parts


def test_the_parts_of_a_batch_are_those_of_the_whole():
    """Whoever draws them; also where the share of a task in the loss depends on the parts of others."""
    few = Sampler(
        [
            replace(task, instances=np.zeros((len(task.examples["instance"]), 2), np.float32))
            for task in (training_task(index, examples=1 + 2 * index) for index in range(4))
        ],
        BatchConfig(4, 3, 24, packing=False),
        0,
    )
    for made in (sampler(shape=(4, 2, 24), share=0.5), one_example_each(3, instances=False), few):
        for step in range(3):
            whole = made.draw(step)
            size = len(whole.tokens) // made.shape.tasks
            for slots in ([0], [1], [0, 1], list(range(made.shape.tasks))):
                part = made.draw(step, slots)
                rows = np.concatenate([np.arange(size) + slot * size for slot in slots])
                jax.tree.map(np.testing.assert_array_equal, part, jax.tree.map(lambda leaf, at=rows: leaf[at], whole))
    assert any(np.any(few.draw(step).weights.sum((1, 2)) == 0) for step in range(3))


def test_the_places_of_a_batch_have_random_numbers_of_their_own():
    """The first task's condition, say, tells nothing about which tasks are drawn, or about the second's."""
    drawn = [sampler(shape=(2, 1, 24)).draw(step).condition for step in range(300)]
    wordings = np.asarray([own.z[:, 1] for own in drawn])
    tasks = np.asarray([own.task for own in drawn])
    assert abs(np.corrcoef(wordings[:, 0], wordings[:, 1])[0, 1]) < 0.15
    assert all(abs(np.corrcoef(tasks[:, 0] == n, wordings[:, 0])[0, 1]) < 0.2 for n in range(6))
