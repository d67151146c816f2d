import json
import math
import shutil

import pytest
import torch
from small import differing, state

from postgrad.config.sections import SftConfig
from postgrad.data.batch import collate
from postgrad.engine.local import LocalEngine
from postgrad.methods.schedule import rate_share
from postgrad.methods.sft import epoch_batches, train_sft
from postgrad.models.load import load_policy
from postgrad.run import RunDirectory
from postgrad.text.template import Renderer
from postgrad.text.tokenizer import load_tokenizer
from postgrad.trainer.local import LocalTrainer
from postgrad.types import Conversation, Example, GenerationRequest, Message, SamplingParams

ANSWERS = {
    "sky": "blue",
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "sun": "gold",
    "sea": "deep",
    "ice": "cold",
    "fire": "hot",
}


def demonstrations(renderer):
    prompts = [Conversation((Message("user", f"{thing}?"),)) for thing in ANSWERS]
    examples = [
        Example(str(i), prompt, (Message("assistant", answer),))
        for i, (prompt, answer) in enumerate(zip(prompts, ANSWERS.values(), strict=True))
    ]
    return prompts, [renderer.render_example(e) for e in examples]


def quiet(done, total):
    pass


def stop_at(step):
    def progress(done, total):
        if done == step:
            raise KeyboardInterrupt

    return progress


def without_times(run):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in run.read_metrics()]


def with_pad_token(directory, copy, token):
    """The same model and tokenizer, both of which name `token` for padding."""
    shutil.copytree(directory, copy)
    pad_id = load_tokenizer(directory).convert_tokens_to_ids(token)
    for name, key, value in (("config.json", "pad_token_id", pad_id), ("tokenizer_config.json", "pad_token", token)):
        content = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(content | {key: value}))
    tokenizer = load_tokenizer(copy)
    assert tokenizer.pad_token_id == pad_id
    return copy


@pytest.mark.parametrize("pad_token", [None, "<end>", "<start>"], ids=["no pad", "pad is eos", "another"])
def test_demonstrations_are_learned_by_heart_and_then_the_policy_stops(tiny_model_directory, tmp_path, pad_token):
    directory = tiny_model_directory
    assert load_tokenizer(directory).pad_token is None
    if pad_token is not None:
        directory = with_pad_token(directory, tmp_path / "padded", pad_token)
    renderer = Renderer(load_tokenizer(directory))
    assert (pad_token == "<end>") == (load_tokenizer(directory).pad_token_id == renderer.end_id)
    prompts, rows = demonstrations(renderer)
    model = load_policy(directory)
    run = RunDirectory(tmp_path)
    cfg = SftConfig(num_examples=8, epochs=60, examples_per_step=8, learning_rate=1e-2)
    train_sft(LocalTrainer(model, batch_tokens=1000), rows, cfg, run, quiet)
    losses = [row["loss/nll"] for row in run.read_metrics()]
    assert losses[0] > 3
    assert losses[-1] < 0.05
    engine = LocalEngine(model, stop_ids=renderer.stop_ids, decode=renderer.decode)
    greedy = SamplingParams(max_tokens=12, temperature=0.0)
    completions = engine.sample([GenerationRequest(renderer.render_prompt(p), greedy, 0) for p in prompts])
    assert [c.text for c in completions] == list(ANSWERS.values())
    assert {c.finish_reason for c in completions} == {"stop"}
    assert {c.token_ids[-1] for c in completions} == {renderer.end_id}
    assert all(math.exp(c.logprobs[-1]) > 0.9 for c in completions)


def test_the_first_loss_is_the_mean_over_answer_tokens_of_transformers_own(tiny_model_directory, tmp_path):
    _, rows = demonstrations(Renderer(load_tokenizer(tiny_model_directory)))
    model = load_policy(tiny_model_directory)
    total, count = 0.0, 0
    for ids, mask in rows:
        with torch.no_grad():
            logp = model.lm(torch.tensor([ids])).logits[0].log_softmax(-1)
        for t in range(1, len(ids)):
            if mask[t]:
                total, count = total - float(logp[t - 1, ids[t]]), count + 1
    run = RunDirectory(tmp_path)
    cfg = SftConfig(num_examples=8, epochs=1, examples_per_step=8)
    train_sft(LocalTrainer(model, batch_tokens=60), rows, cfg, run, quiet)
    assert count == sum(len(a) + 1 for a in ANSWERS.values()), "the answers' bytes and their end tokens"
    assert run.read_metrics()[0]["loss/nll"] == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("stop", [5, 13])
def test_a_killed_run_ends_where_an_uninterrupted_one_does_bit_for_bit(tiny_model_directory, tmp_path, stop):
    _, rows = demonstrations(Renderer(load_tokenizer(tiny_model_directory)))
    cfg = SftConfig(num_examples=8, epochs=6, examples_per_step=3, learning_rate=1e-3)

    def train(name, progress):
        run = RunDirectory(tmp_path / name, root_seed=4)
        trainer = LocalTrainer(load_policy(tiny_model_directory), batch_tokens=60)
        train_sft(trainer, rows, cfg, run, progress)
        return without_times(run), state(trainer.model), (trainer.version, trainer.trained_tokens)

    metrics, weights, counters = train("whole", quiet)
    with pytest.raises(KeyboardInterrupt):
        train("killed", stop_at(stop))
    assert len(without_times(RunDirectory(tmp_path / "killed"))) == stop
    resumed_metrics, resumed_weights, resumed_counters = train("killed", quiet)
    assert [row["step"] for row in metrics] == list(range(1, 19))
    assert resumed_metrics == metrics
    assert differing(resumed_weights, weights) == []
    assert resumed_counters == counters


def test_every_epoch_is_a_new_order_of_all_rows():
    steps = epoch_batches(10, 3, 4, seed=1)
    assert [len(s) for s in steps] == [4, 4, 2] * 3
    epochs = [[row for step in steps[i : i + 3] for row in step] for i in (0, 3, 6)]
    assert [sorted(e) for e in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert epoch_batches(10, 3, 4, seed=1) == steps
    assert epoch_batches(10, 3, 4, seed=2) != steps


def test_a_step_larger_than_the_data_is_an_epoch_and_one_that_does_not_divide_it_leaves_a_smaller_one(
    tiny_model_directory, tmp_path
):
    _, rows = demonstrations(Renderer(load_tokenizer(tiny_model_directory)))

    def train(rows_per_step):
        run = RunDirectory(tmp_path / str(rows_per_step))
        cfg = SftConfig(num_examples=8, epochs=2, examples_per_step=rows_per_step, learning_rate=1e-3)
        trainer = LocalTrainer(load_policy(tiny_model_directory), batch_tokens=60)
        train_sft(trainer, rows, cfg, run, quiet)
        return len(run.read_metrics()), trainer.trained_tokens, state(trainer.model)

    (steps, tokens, weights), (odd_steps, odd_tokens, _) = train(8), train(5)
    assert (steps, odd_steps) == (2, 4)
    assert tokens == odd_tokens == 2 * sum(len(ids) for ids, _ in rows)
    larger = train(1000)
    assert larger[:2] == (steps, tokens)
    assert differing(larger[2], weights) == []


def test_the_rate_climbs_over_a_tenth_and_falls_to_a_tenth_unless_asked_otherwise(tiny_model_directory, tmp_path):
    _, rows = demonstrations(Renderer(load_tokenizer(tiny_model_directory)))

    def train(name, **keys):
        cfg = SftConfig(num_examples=8, epochs=20, examples_per_step=8, learning_rate=1e-3, **keys)
        run = RunDirectory(tmp_path / name)
        train_sft(LocalTrainer(load_policy(tiny_model_directory), batch_tokens=1000), rows, cfg, run, quiet)
        return [row["optim/learning_rate"] / 1e-3 for row in run.read_metrics()]

    shares = train("default")
    assert shares[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert shares[11] == pytest.approx(0.55)
    assert shares[19] == pytest.approx(0.15)
    assert train("constant", schedule="constant", warmup_frac=0.0) == pytest.approx([1.0] * 20)
    expected = [rate_share("cosine", step, 20, warmup_frac=0.1) for step in range(20)]
    assert train("cosine", schedule="cosine") == pytest.approx(expected)


def test_collated_demonstrations_train_the_answer_and_its_end_alone(tiny_model_directory):
    renderer = Renderer(load_tokenizer(tiny_model_directory))
    prompts, rows = demonstrations(renderer)
    batch = collate([ids for ids, _ in rows], [mask for _, mask in rows])
    trained = batch.input_ids[0][batch.loss_mask[0]].tolist()
    assert trained == [*b"blue", renderer.end_id]
    assert int(batch.loss_mask[0].int().argmax()) == len(renderer.render_prompt(prompts[0]))
