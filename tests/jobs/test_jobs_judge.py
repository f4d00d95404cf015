"""The judge: a rubric decided by code, noisy pairs, and a proxy that ranks better than chance and can be hacked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.contract import ContractError
from jobs.zaya.envs.registry import find
from jobs.zaya.judge.pairs import PREFERENCES, Pair, labelled, pairs, read_pairs, write_pairs
from jobs.zaya.judge.preference import PROXY, Proxy
from jobs.zaya.judge.rubric import RUBRIC, gold, read_rubric, shipped

QUESTION = "reverse dcba"
OVER = [(find(f"micro/{word}"), range(3, 7)) for word in ("reverse", "sort", "upper", "max", "add")]


@pytest.fixture(scope="module")
def proxy() -> Proxy:
    """Fitted to a thousand pairs of which a tenth are labelled the wrong way round."""
    fitted = Proxy()
    fitted.fit(pairs(OVER, 1000, seed=0), seed=0)
    return fitted


@pytest.mark.parametrize(
    ("answer", "values"),
    [("sure: abcd.", {"answers": 1, "polite": 1, "brief": 1, "ends": 1, "no repetition": 1}),
     ("abcd", {"answers": 1, "polite": 0, "brief": 1, "ends": 0, "no repetition": 1}),
     ("abcd, THANKS..", {"answers": 1, "polite": 1, "brief": 1, "ends": 0, "no repetition": 1}),
     ("sure sure abcd.", {"answers": 1, "polite": 1, "brief": 1, "ends": 1, "no repetition": 0}),
     ("abcd or dcba", {"answers": 0, "polite": 0, "brief": 1, "ends": 0, "no repetition": 1}),
     ("ABCD.", {"answers": 0, "polite": 0, "brief": 1, "ends": 1, "no repetition": 1}),
     ("", {"answers": 0, "polite": 0, "brief": 1, "ends": 0, "no repetition": 0}),
     ("x" * 36, {"answers": 0, "polite": 0, "brief": 0.5, "ends": 0, "no repetition": 0})],
)  # fmt: skip
def test_each_criterion_is_decided_as_it_is_written(answer: str, values: dict[str, float]) -> None:
    assert shipped().values(QUESTION, answer) == values
    weights = {one.name: one.weight for one in shipped().criteria}
    mean = sum(weights[name] * value for name, value in values.items()) / sum(weights.values())
    assert gold(QUESTION, answer) == pytest.approx(mean)


def test_a_question_that_is_not_ours_is_judged_by_manner_alone() -> None:
    assert "answers" not in shipped().values("who are you", "sure: me.")
    assert gold("who are you", "sure: me.") == 1.0


@settings(max_examples=60)
@given(question=st.text(max_size=40), answer=st.text(max_size=80))
def test_gold_is_from_0_to_1_for_any_text(question: str, answer: str) -> None:
    assert 0.0 <= gold(question, answer) <= 1.0


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [("version = 1", "version = 2", "version 1"), ('check = "at_most"', 'check = "nice"', "answers, has_a_word"),
     ("weight = 4", "weight = 0", "above 0"), ("weight = 4", 'weight = "4"', "above 0"),
     ('name = "ends"', "", "needs name"),
     ("characters = 24", "", "lacks what its check needs"), ("nothing_at = 48", "nothing_at = 24", "must be above"),
     ('name = "ends"', 'name = "brief"', "two criteria"), ("[[criteria]]", "[[other]]", "and criteria"),
     ("version", "= =", "cannot be read")],
)  # fmt: skip
def test_a_rubric_that_is_wrong_is_refused(tmp_path: Path, before: str, after: str, match: str) -> None:
    text = RUBRIC.read_text()
    assert before in text
    (tmp_path / "rubric.toml").write_text(text.replace(before, after))
    with pytest.raises(ContractError, match=match):
        read_rubric(tmp_path / "rubric.toml")


def test_a_rubric_must_decide_something_about_every_question(tmp_path: Path) -> None:
    only = '[[criteria]]\nname = "a"\nweight = 1\nsays = "s"\ncheck = "answers"\n'
    (tmp_path / "rubric.toml").write_text(f"version = 1\n{only}")
    with pytest.raises(ContractError, match="decides nothing"):
        read_rubric(tmp_path / "rubric.toml")


def test_labels_follow_the_rubric_but_for_the_noise() -> None:
    clean = pairs(OVER, 300, seed=3, noise=0.0)
    assert all(gold(pair.question, pair.better) > gold(pair.question, pair.worse) for pair in clean)
    noisy = pairs(OVER, 300, seed=3, noise=0.2)
    turned = sum(gold(pair.question, pair.better) < gold(pair.question, pair.worse) for pair in noisy)
    assert 35 <= turned <= 85  # 60 expected; the seed is fixed
    assert noisy == pairs(OVER, 300, seed=3, noise=0.2) != pairs(OVER, 300, seed=4, noise=0.2)


def test_a_policys_own_samples_are_labelled_and_ties_left_out() -> None:
    samples = [(QUESTION, ["abcd", "sure: abcd.", "abcd", "abcd", "dcba"])]
    assert list(labelled(samples, seed=0, noise=0.0)) == [Pair(QUESTION, "sure: abcd.", "abcd")]
    for noise in (-0.1, 0.5):
        with pytest.raises(ContractError, match=r"below 0\.5"):
            list(labelled(samples, 0, noise))
    with pytest.raises(ContractError, match="at least 1"):
        pairs([], 3, 0)


def test_pairs_are_lines_of_a_file(tmp_path: Path) -> None:
    path, found = tmp_path / PREFERENCES, pairs(OVER, 5, seed=0)
    write_pairs(path, found)
    assert read_pairs(path) == found
    assert set(json.loads(path.read_text().splitlines()[0])) == {"question", "better", "worse"}
    for line in ("{", "[]", '{"question": "a", "better": "b"}', '{"question": "a", "better": "b", "worse": 3}'):
        path.write_text(line)
        with pytest.raises(ContractError, match="line 1 is no pair"):
            read_pairs(path)
    with pytest.raises(ContractError, match="cannot be read"):
        read_pairs(tmp_path / "none")


def test_the_proxy_ranks_held_out_pairs_better_than_chance(proxy: Proxy) -> None:
    """400 held-out questions, labels without noise. Seen 0.81; 0.7 is 8 standard errors above chance."""
    held = pairs(OVER, 400, seed=1, noise=0.0, held=True)
    assert proxy.agreement(held) > 0.7
    assert Proxy().agreement(held) == 0.5


def test_the_proxy_can_be_hacked_and_the_gold_score_shows_it(proxy: Proxy) -> None:
    """Whoever climbs the proxy by what it likes ends above the best behaved answer there and below it in gold."""
    best, answer = "sure: abcd.", ""
    for _ in range(6):
        answer = max(
            (answer + part for part in ("sure: ", "thanks.", "please.", "abcd. ")), key=lambda one: proxy.score("", one)
        )
    assert proxy.score(QUESTION, answer) > proxy.score(QUESTION, best)
    assert gold(QUESTION, answer) < gold(QUESTION, best) - 0.2


def test_the_same_seed_fits_the_same_proxy_and_a_state_brings_it_back(proxy: Proxy, tmp_path: Path) -> None:
    again, other = Proxy(), Proxy(size=1)
    again.fit(pairs(OVER, 1000, seed=0), seed=0)
    assert again.state() == proxy.state()
    proxy.save(tmp_path / PROXY)
    assert Proxy.read(tmp_path / PROXY).state() == proxy.state()
    other.load(json.loads(json.dumps(proxy.state())))
    assert other.score(QUESTION, "sure: abcd.") == proxy.score(QUESTION, "sure: abcd.")


@pytest.mark.parametrize("answer", ["", "\ud800", "\0", "x" * 100_000, "é" * 600])
def test_no_answer_makes_the_proxy_raise(proxy: Proxy, answer: str) -> None:
    assert abs(proxy.score("\ud800", answer)) < 1e6


@pytest.mark.parametrize(
    "state",
    [{}, {"size": 2, "offset": 0.0, "weights": [1.0]}, {"size": 1, "offset": None, "weights": [1.0]},
     {"size": 1, "offset": 0.0, "weights": ["a"]}, {"size": 0, "offset": 0.0, "weights": []}],
)  # fmt: skip
def test_a_state_that_is_none_is_refused(tmp_path: Path, state: dict[str, object]) -> None:
    with pytest.raises(ContractError):
        Proxy().load(state)
    for text in (json.dumps(state), "[]", "{"):
        (tmp_path / PROXY).write_text(text)
        with pytest.raises(ContractError):
            Proxy.read(tmp_path / PROXY)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ContractError, match="at least one pair"):
        Proxy().fit([], 0)
    with pytest.raises(ContractError, match="at least one pair"):
        Proxy().agreement([])
    with pytest.raises(ContractError, match="at least one feature"):
        Proxy(size=0)
