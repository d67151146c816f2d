import typing

import pytest

from postgrad.config.load import load_recipe
from postgrad.config.rl import AlgorithmName, RlConfig
from postgrad.errors import ConfigError
from postgrad.methods.algorithms import GROUP_RELATIVE, make_algorithm
from postgrad.methods.grpo import CISPO, DAPO, GSPO
from postgrad.methods.ppo import PPO
from postgrad.methods.preference import Compared, Opinion, make_objective
from postgrad.methods.reinforce import Reinforce
from postgrad.recipes import recipe_path

JUDGED = Compared((1,), ((2,), (3,)), (), (Opinion(0, True), Opinion(1, False)))


def made(**knobs):
    return make_algorithm(RlConfig(steps=1, max_tokens=50, **knobs))


def test_every_name_makes_an_algorithm_of_its_own():
    names = typing.get_args(AlgorithmName)
    assert set(names) == {"ppo", "reinforce", *GROUP_RELATIVE}
    algorithms = [made(algorithm=name) for name in names]
    assert len(set(algorithms)) == len(names)


@pytest.mark.parametrize("path", sorted(recipe_path("quickstart").parent.glob("*.toml")), ids=lambda path: path.stem)
def test_every_packaged_recipe_makes_an_algorithm(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    if recipe.method == "preference":
        assert make_objective(recipe.preference, [JUDGED]).beta == recipe.preference.beta
    elif recipe.method in ("round", "rl"):
        assert make_algorithm(recipe.rl).kl_coef == recipe.rl.kl_coef


def test_what_a_recipe_leaves_out_is_the_algorithms_own():
    assert made(algorithm="ppo") == PPO()
    assert made(algorithm="reinforce") == Reinforce()
    assert made(algorithm="gspo").clip_eps == GSPO.clip_eps == 3e-4
    assert made(algorithm="dapo").clip_eps_high == DAPO.clip_eps_high == 0.28
    assert made(algorithm="cispo").clip_eps_high == CISPO.clip_eps_high
    assert made(algorithm="maxrl").missing_end_penalty == 0
    assert made(algorithm="dr_grpo").max_tokens == 50


def test_what_a_recipe_says_reaches_the_algorithm():
    shared = {"clip_eps": 0.11, "clip_eps_high": 0.33, "kl_coef": 0.07, "missing_end_penalty": 0.3}
    critic = {
        "kl_target": 5.0,
        "whiten_rewards": True,
        "dual_clip": 2.5,
        "value_clip": 0.4,
        "value_coef": 0.2,
        "gamma": 0.9,
        "gae_lambda": 0.8,
    }
    assert critic.keys() == RlConfig.PPO_ONLY
    assert made(algorithm="ppo", **shared, **critic) == PPO(**shared, **critic)
    for name in ("reinforce", "grpo", "dapo"):
        algorithm = made(algorithm=name, **shared)
        assert {key: getattr(algorithm, key) for key in shared} == shared


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("algorithm=grpo group_size=1", "'rl.group_size' = 1: grpo compares siblings and needs group_size >= 2"),
        (
            "algorithm=rloo value_clip=0.2",
            "'rl.value_clip' = 0.2: belongs to ppo, and 'rl.algorithm' is 'rloo'; remove",
        ),
        ("algorithm=reinforce kl_target=6", "'rl.kl_target' = 6: belongs to ppo, and 'rl.algorithm' is 'reinforce'"),
        ("algorithm=cispo clip_eps=0.2", "'rl.clip_eps' = 0.2: cispo has no lower bound; set 'rl.clip_eps_high'"),
        ("algorithm=maxrl missing_end_penalty=1", "'rl.missing_end_penalty' = 1: maxrl needs rewards >= 0"),
        ("algorithm=gpro", "'rl.algorithm' = 'gpro': input should be 'ppo', 'reinforce', 'grpo'"),
        ("dual_clip=1", "'rl.dual_clip' = 1: input should be greater than 1"),
    ],
)
def test_knobs_that_an_algorithm_lacks_are_refused_in_a_sentence(overrides, sentence):
    with pytest.raises(ConfigError) as refusal:
        load_recipe(recipe_path("quickstart"), tuple(f"rl.{override}" for override in overrides.split()))
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_one_answer_a_prompt_is_enough_without_siblings(name):
    assert made(algorithm=name, group_size=1)
