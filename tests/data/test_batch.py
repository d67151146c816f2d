import pytest
import torch

from postgrad.data.batch import collate, make_batch, micro_batches
from postgrad.errors import DataError
from postgrad.types import Completion, Conversation, Example, Group, Message, Score, Trajectory, Turn


def trajectory(prompt, sampled, reward, finish="stop"):
    logprobs = tuple(-0.1 * token for token in sampled)
    turn = Turn(tuple(prompt), Completion(tuple(sampled), logprobs, finish, 3, ""))
    return Trajectory("t", (turn,), "completed", scores=(Score("g", reward),))


def group(name, *trajectories):
    return Group(Example(name, Conversation((Message("user", "?"),))), trajectories)


def grouped_batch(sizes, lengths):
    """One group for every size; the answers take `lengths` in turn."""
    groups, at = [], 0
    for g, size in enumerate(sizes):
        rows = [trajectory([50 + g] * (2 + g), [1 + at + i] * lengths[at + i], 1.0) for i in range(size)]
        groups.append(group(str(g), *rows))
        at += size
    return make_batch(groups)


def test_index_t_describes_token_t():
    batch = make_batch(
        [
            group("a", trajectory([9, 8, 7], [1, 2], 0.5), trajectory([9, 8, 7], [3], -1.0, "length")),
            group("b", trajectory([6], [4, 5, 6], 2.0)),
        ]
    )
    assert batch.input_ids.tolist() == [[9, 8, 7, 1, 2], [9, 8, 7, 3, 0], [6, 4, 5, 6, 0]]
    assert batch.lengths.tolist() == [5, 4, 4]
    assert batch.loss_mask.int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 0], [0, 1, 1, 1, 0]]
    expected = torch.tensor([[0, 0, 0, -0.1, -0.2], [0, 0, 0, -0.3, 0], [0, -0.4, -0.5, -0.6, 0]])
    torch.testing.assert_close(batch.sampler_logprobs, expected)
    assert batch.rewards.tolist() == [0.5, -1.0, 2.0]
    assert batch.group_ids.tolist() == [0, 0, 1]
    assert batch.finished.tolist() == [True, False, True]
    assert batch.num_loss_tokens == 6


def test_the_first_token_is_never_trained_because_nothing_predicts_it():
    batch = collate([[1, 2, 3]], [[True, False, True]])
    assert batch.loss_mask.tolist() == [[False, False, True]]


def test_a_trained_token_whose_id_is_zero_stays_trained_and_padding_does_not():
    batch = collate([[0, 0, 0], [5, 0]], [[False, True, True], [False, True]])
    assert batch.loss_mask.tolist() == [[False, True, True], [False, True, False]]


def test_demonstrations_without_a_trained_token_are_all_named():
    masks = [[True, False], [False, True], [False, False]]
    with pytest.raises(DataError, match="no token to train on in 'first', 'third'"):
        collate([[1, 2], [3, 4], [5, 6]], masks, names=["first", "second", "third"])
    with pytest.raises(DataError, match="no token to train on in 2"):
        collate([[1, 2], [3, 4], [5, 6]], [[False, True], [False, True], [False, False]])


def test_rows_are_cut_to_the_longest_of_them():
    batch = collate([[1, 2, 3, 4], [5, 6], [7, 8, 9]], [[False, True, True, True], [False, True], [False, True, True]])
    picked = batch.with_(rewards=torch.tensor([1.0, 2.0, 3.0])).rows(torch.tensor([2, 1]))
    assert picked.input_ids.tolist() == [[7, 8, 9], [5, 6, 0]]
    assert picked.loss_mask.tolist() == [[False, True, True], [False, True, False]]
    assert picked.lengths.tolist() == [3, 2]
    assert picked.rewards.tolist() == [3.0, 2.0]


def test_minibatches_are_a_partition_that_keeps_siblings_together():
    batch = grouped_batch([3, 1, 2, 2, 4], [1, 2, 3, 1, 5, 1, 2, 2, 1, 1, 1, 1])
    parts = list(batch.minibatches(3, seed=4))
    owners = [set(part.group_ids.tolist()) for part in parts]
    assert sorted(len(o) for o in owners) == [1, 2, 2]
    assert sorted(g for o in owners for g in o) == [0, 1, 2, 3, 4]
    answers = sorted(int(row[row > 0][-1]) for part in parts for row in part.input_ids)
    assert answers == list(range(1, 13))


def test_minibatches_depend_on_the_seed_and_on_nothing_else():
    batch = collate([[1, i] for i in range(40)], [[False, True]] * 40)

    def order(seed):
        return [part.input_ids[:, 1].tolist() for part in batch.minibatches(4, seed=seed)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(i for part in order(1) for i in part) == list(range(40))


def test_there_are_no_more_minibatches_than_groups():
    assert len(list(grouped_batch([2, 2], [1, 1, 1, 1]).minibatches(5, seed=0))) == 2


def test_micro_batches_hold_their_budget_and_every_sequence_once():
    batch = grouped_batch([3, 1, 2, 2, 4], [1, 2, 3, 1, 5, 1, 2, 2, 1, 1, 1, 1])
    for budget in (1, 9, 14, 1000):
        seen = []
        for index, part in micro_batches(batch, budget):
            seen += index.tolist()
            assert part.input_ids.tolist() == batch.rows(index).input_ids.tolist()
            owners = part.group_ids.unique_consecutive().tolist()
            prompts = sum(2 + g for g in owners)
            assert prompts + part.num_loss_tokens <= budget or len(owners) == 1
        assert sorted(seen) == list(range(12))
    assert len(list(micro_batches(batch, 1))) == 5
    assert len(list(micro_batches(batch, 1000))) == 1


def test_without_groups_every_sequence_stands_for_itself():
    batch = collate([[1] * n for n in (4, 2, 6, 3)], [[False] + [True] * (n - 1) for n in (4, 2, 6, 3)])
    assert [index.tolist() for index, _ in micro_batches(batch, 7)] == [[2], [0, 3], [1]]
