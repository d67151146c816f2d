import torch

from postgrad.ops.attention import spans_mask
from postgrad.ops.packing import pack, pad


def visible(packed, row):
    """For every place of a row, the places that it sees."""
    mask = spans_mask(packed.spans, *packed.input_ids_RL.shape)
    return [set(seen.nonzero().flatten().tolist()) for seen in mask[row, 0]]


def test_pad_puts_zeros_on_the_right_and_keeps_the_lengths():
    padded, lengths = pad([[5, 6, 7], [8]])
    assert padded.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert padded.dtype == torch.int64
    assert lengths.tolist() == [3, 1]
    assert pad([[0.5], [1.5, 2.5]], dtype=torch.float32)[0].tolist() == [[0.5, 0.0], [1.5, 2.5]]


def test_two_siblings_and_a_stranger_by_hand():
    ids, lengths = pad([[7, 8, 1], [7, 8, 2, 3], [9, 4]])
    packed = pack(ids, lengths, prefix_lengths_B=torch.tensor([2, 2, 1]), row_tokens=7)
    assert packed.input_ids_RL.tolist() == [[7, 8, 1, 2, 3, 9, 4]]
    assert packed.position_ids_RL.tolist() == [[0, 1, 2, 2, 3, 0, 1]]
    assert packed.place_BT.tolist() == [[0, 1, 2, 0], [0, 1, 3, 4], [5, 6, 0, 0]]
    assert visible(packed, 0) == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 3}, {0, 1, 3, 4}, {5}, {5, 6}]


def test_padding_at_the_end_of_a_row_sees_itself_alone_and_is_seen_by_nobody():
    ids, lengths = pad([[1, 2, 3, 4, 5], [6, 7, 8]])
    packed = pack(ids, lengths, row_tokens=5)
    assert packed.input_ids_RL.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]
    assert visible(packed, 1) == [{0}, {0, 1}, {0, 1, 2}, {3}, {4}]


def test_a_token_sees_exactly_its_own_past_whatever_the_neighbours():
    generator = torch.Generator().manual_seed(0)
    for row_tokens in (1, 12, 40, 500, None):
        heads = [[90 + h] * (1 + h) for h in range(5)]
        rows, prefixes = [], []
        for i in range(30):
            head = heads[i % 5]
            rows.append(head + torch.randint(80, (1 + i % 7,), generator=generator).tolist())
            prefixes.append(len(head))
        ids, lengths = pad(rows)
        packed = pack(ids, lengths, prefix_lengths_B=torch.tensor(prefixes), row_tokens=row_tokens)
        width = packed.input_ids_RL.shape[1]
        flat_ids, flat_positions = packed.input_ids_RL.flatten(), packed.position_ids_RL.flatten()
        for b, row in enumerate(rows):
            places = packed.place_BT[b, : len(row)]
            assert flat_ids[places].tolist() == row
            assert flat_positions[places].tolist() == list(range(len(row)))
            for t, place in enumerate(places.tolist()):
                r, column = divmod(place, width)
                assert visible(packed, r)[column] == {p - r * width for p in places[: t + 1].tolist()}


def test_a_shared_prefix_is_held_once_and_an_unshared_one_by_everybody():
    ids, lengths = pad([[5, 5, 5, i] for i in range(4)])
    shared = pack(ids, lengths, prefix_lengths_B=torch.full((4,), 3), row_tokens=100)
    assert shared.input_ids_RL.shape == (1, 7)
    assert pack(ids, lengths, row_tokens=100).input_ids_RL.shape == (1, 16)


def test_rows_hold_no_more_than_asked_but_for_a_sequence_that_is_longer():
    ids, lengths = pad([[1] * n for n in (2, 9, 3, 4, 5, 1)])
    assert pack(ids, lengths, row_tokens=12).input_ids_RL.shape == (2, 12)
    assert pack(ids, lengths, row_tokens=4).input_ids_RL.shape == (3, 9)


def test_without_a_row_length_everything_lies_in_one_row_without_padding():
    ids, lengths = pad([[7, 7, i, i, i] for i in range(5)] + [[1, 2, 3]])
    packed = pack(ids, lengths, prefix_lengths_B=torch.tensor([2, 2, 2, 2, 2, 1]))
    assert packed.input_ids_RL.shape == (1, 2 + 5 * 3 + 3)
    assert packed.spans.shared == ((2, 17, 0, 2),)
    assert packed.spans.causal[0] == (0, 2)
    assert (17, 20) in packed.spans.causal, "a prefix of one sequence alone is a part of it"


def test_a_bundle_that_outgrows_its_row_ends_and_the_prefix_is_held_again():
    ids, lengths = pad([[7, 7, i, i, i] for i in range(5)])
    packed = pack(ids, lengths, prefix_lengths_B=torch.full((5,), 2), row_tokens=8)
    assert packed.input_ids_RL.tolist() == [
        [7, 7, 0, 0, 0, 1, 1, 1],
        [7, 7, 2, 2, 2, 3, 3, 3],
        [7, 7, 4, 4, 4, 0, 0, 0],
    ]


def test_equal_sequences_are_one():
    ids, lengths = pad([[7, 8, 1], [9], [7, 8, 1], [7, 8, 1, 1]])
    packed = pack(ids, lengths, prefix_lengths_B=torch.tensor([2, 0, 1, 2]))
    assert packed.input_ids_RL.shape == (1, 6)
    assert torch.equal(packed.place_BT[0], packed.place_BT[2])
    assert packed.input_ids_RL.flatten()[packed.place_BT[3]].tolist() == [7, 8, 1, 1]


def test_an_answer_without_tokens_ends_where_its_prompt_does():
    ids, lengths = pad([[7, 8], [7, 8, 1]])
    packed = pack(ids, lengths, prefix_lengths_B=torch.tensor([2, 2]))
    assert packed.input_ids_RL.tolist() == [[7, 8, 1]]
    assert packed.place_BT.tolist() == [[0, 1, 0], [0, 1, 2]]
    assert packed.spans.causal == ((0, 2), (2, 3))
