import math
from itertools import accumulate

import pytest
import torch
from small import differing, random_model, state

from postgrad.config.pretrain import PretrainConfig
from postgrad.data.text import pack_rows
from postgrad.engine.local import LocalEngine
from postgrad.evals.calibration import clustered_calibration, ece
from postgrad.methods.pretrain import TokenStream, bits_per_byte, pretrain, read_next_tokens
from postgrad.run import RunDirectory
from postgrad.trainer.local import LocalTrainer
from postgrad.types import GenerationRequest, SamplingParams

EOS = 0
CONTEXT = 16
CFG = PretrainConfig(steps=10, rows_per_step=3, learning_rate=1e-2, evaluate_every=4)


def quiet(done, total):
    pass


def stream(sizes, *, seed=0, vocabulary=48):
    """Documents of so many random tokens, none of them EOS, one byte each."""
    generator = torch.Generator().manual_seed(seed)
    ids = [EOS]
    for size in sizes:
        ids += [*torch.randint(1, vocabulary, (size,), generator=generator).tolist(), EOS]
    ends = [0, *accumulate(size + 1 for size in sizes)]
    return TokenStream(torch.tensor(ids, dtype=torch.int32), ends, sizes)


TRAINING, VALIDATION = stream([40, 3, 22, 1, 60, 17]), stream([20, 9, 33], seed=1)


def small_model(seed=0):
    return random_model(seed=seed, max_position_embeddings=CONTEXT)


def document_nats(model, tokens):
    """By transformers alone, in spans of the context, each begun with the last token of the one before."""
    total, at = 0.0, 0
    while at < len(tokens) - 1:
        span = tokens[at : at + CONTEXT]
        with torch.no_grad():
            logp = model.lm(torch.tensor([span])).logits[0].double().log_softmax(-1)
        total -= sum(float(logp[t - 1, span[t]]) for t in range(1, len(span)))
        at += len(span) - 1
    return total


def test_bits_per_byte_by_hand():
    # Four bytes read at 2 bits, 1 bit, 1 bit and, with the end of the text, 4 bits.
    assert bits_per_byte(math.log(4 * 2 * 2 * 16), 4) == pytest.approx(2.0)
    # A uniform choice out of 256 for every byte is what it costs to write it down.
    assert bits_per_byte(10 * math.log(256), 10) == pytest.approx(8.0)


def test_the_loss_of_a_step_is_that_of_its_documents_read_one_by_one(tmp_path):
    model = small_model()
    cfg = CFG.model_copy(update={"steps": 1, "rows_per_step": 100})
    run = RunDirectory(tmp_path)
    expected = 0.0
    for row in pack_rows(TRAINING.ends, CONTEXT):
        for start, stop in row:
            expected += document_nats(model, TRAINING.ids[start:stop].tolist())
    held_out = sum(document_nats(model, VALIDATION.ids[a : b + 1].tolist()) for a, b in ((0, 21), (21, 31), (31, 65)))
    pretrain(LocalTrainer(model, batch_tokens=64), TRAINING, VALIDATION, cfg, run, quiet, context=CONTEXT)
    (row,) = run.read_metrics()
    assert row["loss/nll"] == pytest.approx(expected / (len(TRAINING.ids) - 1), abs=1e-5)
    assert VALIDATION.ends == [0, 21, 31, 65]
    # Read after the step, so only near what the untrained model says.
    assert row["validation/bits_per_byte"] == pytest.approx(held_out / math.log(2) / 62, rel=0.2)
    again = sum(document_nats(model, VALIDATION.ids[a : b + 1].tolist()) for a, b in ((0, 21), (21, 31), (31, 65)))
    assert row["validation/bits_per_byte"] == pytest.approx(again / math.log(2) / 62, abs=1e-5)


def test_a_document_does_not_see_its_neighbours_in_a_row():
    model, rows = small_model(), pack_rows(TRAINING.ends, CONTEXT)
    row = next(row for row in rows if len(row) > 1)
    batch = TRAINING.batch(row)
    before = LocalTrainer(model, batch_tokens=64).evaluate(batch).logprobs
    batch.input_ids[0, 1:] = 7
    after = LocalTrainer(model, batch_tokens=64).evaluate(batch).logprobs
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1:], after[1:], atol=1e-6, rtol=0)


def test_a_text_that_repeats_is_learned(tmp_path):
    text = stream([30, 30])
    trainer = LocalTrainer(small_model(), batch_tokens=256)
    cfg = CFG.model_copy(update={"steps": 60, "rows_per_step": 8, "evaluate_every": 60})
    run = RunDirectory(tmp_path)
    pretrain(trainer, text, text, cfg, run, quiet, context=CONTEXT)
    rows = run.read_metrics()
    assert rows[0]["loss/nll"] > 3
    assert rows[-1]["loss/nll"] < 0.2
    # Cut at other places than the training rows, so its spans begin with less context.
    assert rows[-1]["validation/bits_per_byte"] < 1.5


@pytest.mark.parametrize("stop", [3, 4, 9])
def test_a_killed_run_ends_where_an_uninterrupted_one_does_bit_for_bit(tmp_path, stop):
    def train(name, progress):
        run = RunDirectory(tmp_path / name, root_seed=4)
        trainer = LocalTrainer(small_model(), batch_tokens=40)
        pretrain(trainer, TRAINING, VALIDATION, CFG, run, progress, context=CONTEXT)
        rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in run.read_metrics()]
        return rows, state(trainer.model), (trainer.version, trainer.trained_tokens)

    def killed(done, total):
        if done == stop:
            raise KeyboardInterrupt

    metrics, weights, counters = train("whole", quiet)
    with pytest.raises(KeyboardInterrupt):
        train("killed", killed)
    resumed_metrics, resumed_weights, resumed_counters = train("killed", quiet)
    assert [row["step"] for row in metrics if "validation/bits_per_byte" in row] == [4, 8, 10]
    assert resumed_metrics == metrics
    assert differing(resumed_weights, weights) == []
    assert resumed_counters == counters


def test_what_is_read_of_next_tokens_is_what_transformers_says():
    model = small_model()
    said = read_next_tokens(model, VALIDATION, quiet)
    documents = [VALIDATION.ids[a : b + 1].tolist() for a, b in ((0, 21), (21, 31), (31, 65))]
    assert said.nats == pytest.approx([document_nats(model, tokens) for tokens in documents], abs=1e-4)
    assert said.num_tokens.tolist() == [21, 10, 34]
    # The short document fits into one context, so its calibration can be read off plain logits.
    with torch.no_grad():
        p = model.lm(torch.tensor([documents[1][:-1]])).logits[0].softmax(-1)
    top, choice = p.max(-1)
    hits = (choice == torch.tensor(documents[1][1:])).double()
    one = clustered_calibration(said.confidence[1:2], said.num_tokens[1:2])
    assert one["ece"] == pytest.approx(ece(top.numpy(), hits.numpy(), num_bins=15), abs=1e-6)
    assert said.probability[1, :, 0].sum() == 10 * 48
    assert said.probability[1, :, 1].sum() == pytest.approx(10)
    assert said.probability[1, :, 2].sum() == 10
    in_decade = (p > 0.1) & (p < 10**-0.5)
    assert said.probability[1, -2, 0] == float(in_decade.sum())
    assert said.probability[1, -2, 1] == pytest.approx(float(p[in_decade].sum()), abs=1e-5)


def test_a_model_that_knows_nothing_says_so():
    model = small_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    said = read_next_tokens(model, VALIDATION, quiet)
    assert said.nats.sum() == pytest.approx(65 * math.log(48), rel=1e-6)
    (row,) = clustered_calibration(said.probability, said.num_tokens)["calibration"]
    assert row == {"predicted": pytest.approx(1 / 48), "observed": pytest.approx(1 / 48), "n": 65 * 48}


@pytest.mark.parametrize(("temperature", "calibrated"), [(1.0, True), (3.0, False)])
def test_a_model_is_calibrated_on_its_own_samples_and_overconfident_on_flatter_ones(temperature, calibrated):
    model = small_model()
    engine = LocalEngine(model, stop_ids=(EOS,), decode=str)
    params = SamplingParams(max_tokens=CONTEXT - 2, temperature=temperature)
    samples = engine.sample([GenerationRequest((EOS,), params, seed) for seed in range(300)])
    ids = [EOS]
    for sample in samples:
        ids += [*(token for token in sample.token_ids if token != EOS), EOS]
    ends = [place for place, token in enumerate(ids) if token == EOS]
    own = TokenStream(torch.tensor(ids, dtype=torch.int32), ends, [1] * (len(ends) - 1))
    said = read_next_tokens(model, own, quiet)
    top = clustered_calibration(said.confidence, said.num_tokens)
    assert (top["ece"] < 0.03) is calibrated
    assert (top["ece"] > 0.08) is not calibrated
    if not calibrated:
        assert all(row["observed"] < row["predicted"] for row in top["calibration"] if row["n"] > 100)
