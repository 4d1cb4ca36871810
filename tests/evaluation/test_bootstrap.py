"""Intervals against the variance of the bootstrap in closed form, and how often they hold the truth."""

import numpy as np
import pytest

from t2l_jax.evaluation.bootstrap import interval, over_examples, over_tasks


def scores(seed, tasks, examples):
    rng = np.random.default_rng(seed)
    return [rng.normal(rng.normal(0, 2), 1, examples) for _ in range(tasks)]


@pytest.mark.parametrize("draw", [over_tasks, over_examples])
@pytest.mark.parametrize(("tasks", "examples"), [(1, 40), (12, 5), (30, 50)])
def test_the_spread_of_replicates_is_the_closed_form(draw, tasks, examples):
    data = scores(0, tasks, examples)
    means = np.array([task.mean() for task in data])
    within = np.mean([task.var(ddof=1) / examples for task in data]) / tasks
    variance = means.var() / tasks if draw is over_tasks else within
    drawn = draw(data, 20_000)
    assert drawn.var() == pytest.approx(variance, rel=0.05)
    assert drawn.mean() == pytest.approx(means.mean(), abs=4 * np.sqrt(variance / 20_000) + 1e-3)


def test_an_interval_is_the_normal_one_where_examples_are_many():
    data = scores(1, 200, 20)
    means = np.array([task.mean() for task in data])
    deviation = means.std() / np.sqrt(200)
    found = interval(data)
    assert found.mean == pytest.approx(means.mean())
    assert found.low == pytest.approx(means.mean() - 1.96 * deviation, abs=0.15 * deviation)
    assert found.high == pytest.approx(means.mean() + 1.96 * deviation, abs=0.15 * deviation)
    assert interval(data) == found


def test_intervals_hold_the_truth_nineteen_times_in_twenty():
    """Also where tasks hardly differ and the examples make all of the spread."""
    held = [found.low <= 0 <= found.high for found in (interval(noise(seed)) for seed in range(400))]
    assert 0.91 <= np.mean(held) <= 0.97


def test_intervals_over_examples_hold_the_mean_of_the_same_tasks_nineteen_times_in_twenty():
    """However far apart the tasks are: their means are 0, 1, 2, ... here, also with as few examples as two."""
    for sizes in ([20 + 5 * task for task in range(8)], [4] * 12, [2] * 20):
        held = []
        for seed in range(400):
            rng = np.random.default_rng(seed)
            found = interval([rng.normal(task, 1, size) for task, size in enumerate(sizes)], over_examples)
            held.append(found.low <= (len(sizes) - 1) / 2 <= found.high)
            assert found.high - found.low < 1.5
        assert 0.91 <= np.mean(held) <= 0.97, sizes


def noise(seed):
    return list(np.random.default_rng(seed).normal(0, 1, (40, 5)))


def test_equal_scores_have_no_width_and_tasks_count_equally():
    assert interval([np.ones(3), np.ones(5)]) == (1, 1, 1)
    assert interval([np.zeros(1), np.ones(99)]).mean == 0.5
    assert interval([np.ones(1)], over_examples) == (1, 1, 1)


def test_a_paired_difference_is_narrower_than_the_methods_apart():
    data = scores(2, 20, 10)
    shifted = [task + 0.1 for task in data]
    difference = interval([a - b for a, b in zip(shifted, data, strict=True)])
    assert difference.low == pytest.approx(0.1)
    assert difference.high == pytest.approx(0.1)
    assert interval(shifted).low < interval(data).high
