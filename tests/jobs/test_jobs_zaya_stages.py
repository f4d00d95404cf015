"""The stages of one trainer: phases with their own rates and mixes, source code, and questions with answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.contract import ContractError
from jobs.zaya.config import TrainConfig, problems, read_config
from jobs.zaya.phases import Phase, learning_rate, place
from jobs.zaya.tokens import ASK, END, PAD, REPLY, TAIL
from jobs.zaya.training.data import Mix, Text, documentation, rows_of, source_code
from jobs.zaya.training.examples import FILE, Examples, answers, tokens_of
from jobs.zaya.training.learner import Learner
from tests.jobs.zaya_small import MODEL, train

PHASES = [{"steps": 6, "decay": "none"}, {"name": "anneal", "steps": 4, "decay": "linear", "codeShare": 0.75}]
QUESTIONS = [
    {"id": str(n), "question": f"reverse {a}{b}", "tails": [], "answer": f"{b}{a}", "environment": "e", "difficulty": 1}
    for n, (a, b) in enumerate([("a", "b"), ("c", "d"), ("ef", "g"), ("h", "ij")])
]


def words(train: Any, data: Any) -> dict[str, str]:
    return {"TRIMTAB_TRAIN_JSON": json.dumps(train), "TRIMTAB_DATA_JSON": json.dumps(data)}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    return tmp_path


def test_two_phases_have_their_own_rates_and_mixes() -> None:
    given = {"steps": 10, "learningRate": 1.0, "warmup": 2, "phases": PHASES}
    _, config = read_config(words(given, {"source": "mix", "codeShare": 0.1}))
    assert config.phases == (Phase(6, 1.0, "none", 0.1), Phase(4, 1.0, "linear", 0.75, "anneal"))
    rates = [learning_rate(step, config.phases, config.warmup) for step in range(1, 11)]
    assert rates == pytest.approx([0.5, *[1.0] * 5, 0.775, 0.55, 0.325, 0.1])


def test_a_step_lies_in_the_phase_that_its_place_gives_and_the_last_goes_on() -> None:
    phases = (Phase(3, 1.0), Phase(2, 1.0), Phase(4, 1.0))
    assert [place(step, phases) for step in (1, 3, 4, 5, 6, 9, 99)] == [
        (0, 0), (0, 0), (1, 3), (1, 3), (2, 5), (2, 5), (2, 5)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "path", "said"),
    [
        ({"train": {"steps": 9, "phases": PHASES[:1]}}, "train.phases", "add up to 6 steps, train.steps says 9"),
        ({"train": {"phases": []}}, "train.phases", "must be a list of phases"),
        ({"train": {"phases": [3]}}, "train.phases.0", "must be a mapping"),
        ({"train": {"phases": [{"decay": "none"}]}}, "train.phases.0.steps", "is needed"),
        ({"train": {"steps": 1, "phases": [{"steps": 1, "rate": 2}]}}, "train.phases.0.rate", "is not known"),
        ({"train": {"phases": [{"steps": 0}]}}, "train.phases.0.steps", "must be a whole number ≥ 1, not 0"),
        ({"train": {"phases": [{"steps": 1, "decay": "no"}]}}, "train.phases.0.decay", "must be one of cosine"),
        ({"train": {"steps": 10, "phases": PHASES}}, "train.phases.1.codeShare", "the source mix alone"),
        ({"data": {"codeShare": 0.5}}, "data.codeShare", "is read with the source mix alone"),
        ({"data": {"source": "mix", "codeShare": 1.5}}, "data.codeShare", "must be ≤ 1"),
        ({"train": {"objective": "sft"}, "data": {"source": "mix"}}, "data.source", "is not read by the objective sft"),
        ({"train": {"objective": "dpo"}}, "train.objective", "must be one of text, sft"),
        ({"train": {"packing": "single"}}, "train.packing", "is read by the objective sft alone"),
        ({"train": {"sharding": "fsdp2", "checkpoints": "whole"}}, "train.checkpoints", "must be dcp"),
    ],
)
def test_words_that_mean_nothing_are_named(given: dict[str, dict[str, Any]], path: str, said: str) -> None:
    found = problems(given)
    assert [where for where, _ in found] == [path]
    assert said in found[0][1]


def test_source_code_is_pythons_own() -> None:
    code = source_code()
    assert 1_000_000 < len(code) <= 2_000_000
    assert b"\nimport " in code
    assert code == source_code()


def test_a_mix_draws_as_many_rows_of_code_as_the_indexs_phase_says() -> None:
    text, code = (Text(bytes([byte]) * 100, 16, 3) for byte in (65, 66))
    mix = Mix(
        text, code, (Phase(10, 1.0, code_share=0.0), Phase(10, 1.0, code_share=0.25), Phase(5, 1.0, code_share=1))
    )
    share = [float((mix.batch(index, 0, 1, 400) == 66).float().mean()) for index in (10, 11, 21)]
    assert share[0] == 0
    assert 0.15 < share[1] < 0.35
    assert share[2] == 1
    halves = torch.stack([mix.batch(11, rank, 2, 8) for rank in (0, 1)], dim=1).flatten(0, 1)
    assert torch.equal(halves, mix.batch(11, 0, 1, 16))


def test_a_mix_is_another_text_than_either_of_its_own() -> None:
    sources = [rows_of(TrainConfig(source=name), None).sha256 for name in ("python-docs", "python-code", "mix")]
    assert len(set(sources)) == 3
    assert sources[0] == Text(documentation(), 16, 5).sha256


def test_only_answers_and_their_ends_are_learned() -> None:
    line = {"question": "ab", "tails": ["x", "yz"], "answer": "ba"}
    tokens = tokens_of(line)
    assert tokens == [ASK, *b"ab", TAIL, *b"x", TAIL, *b"yz", REPLY, *b"ba", END]
    row = torch.tensor([[*tokens, *tokens_of({"question": "q", "answer": "a"}), PAD, PAD]])
    learned = row[answers(row)].tolist()
    assert learned == [*b"ba", END, *b"a", END]


def test_packed_rows_are_full_and_a_function_of_seed_index_and_row(prepared: Path) -> None:
    rows = Examples(prepared / FILE, 64, 7, packed=True)
    whole = rows.batch(3, 0, 1, 4)
    assert whole.shape == (4, 65)
    assert not (whole == PAD).any()
    assert (whole == ASK).sum(dim=1).min() >= 3
    assert torch.equal(torch.stack([rows.batch(3, r, 2, 2) for r in (0, 1)], dim=1).flatten(0, 1), whole)
    assert not torch.equal(whole, rows.batch(4, 0, 1, 4))
    single = Examples(prepared / FILE, 64, 7, packed=False).batch(3, 0, 1, 4)
    assert (single == ASK).sum(dim=1).tolist() == [1] * 4
    assert (single[:, -1] == PAD).all()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "holds no example"),
        ("{", "line 1: not a question"),
        ('{"question": "a"}', "line 1: not a question with its answer"),
        ("[3]", "line 1: not a question"),
        (json.dumps({"question": "a" * 40, "answer": "b"}), "line 1: 44 tokens do not fit into train.length 16"),
    ],
)
def test_examples_that_cannot_be_learned_are_named(tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / FILE).write_text(body)
    with pytest.raises(ContractError, match=said):
        Examples(tmp_path / FILE, 16, 0, packed=True)


def test_without_prepared_examples_there_is_no_fine_tuning(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="TRIMTAB_PREPARED_DIR is not set"):
        rows_of(TrainConfig(objective="sft"), None)
    with pytest.raises(ContractError, match="cannot be read"):
        rows_of(TrainConfig(objective="sft"), tmp_path)


def test_fine_tuning_learns_the_answers(prepared: Path) -> None:
    config = TrainConfig(steps=40, sequences=2, length=64, seed=3, warmup=2, learning_rate=0.01, objective="sft")
    torch.set_num_threads(1)
    losses = train(Learner(MODEL, config, 0, 1, prepared), 1, 40)
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 2


def test_padding_is_no_experts_load_and_changes_no_answers_gradient(prepared: Path) -> None:
    torch.set_num_threads(1)
    values: dict[str, Any] = {"steps": 4, "sequences": 2, "seed": 3, "objective": "sft", "packing": "single"}
    long, short = (Learner(MODEL, TrainConfig(length=length, **values), 0, 1, prepared) for length in (64, 20))
    rows = short.rows.batch(1, 0, 1, 2)
    assert torch.equal(long.rows.batch(1, 0, 1, 2)[:, :21], rows)
    done = [one.step(1, 1) for one in (long, short)]
    assert done[0].loss == pytest.approx(done[1].loss, abs=1e-5)
    assert done[0].grad_norm == pytest.approx(done[1].grad_norm, abs=1e-4)
    assert torch.equal(long.counts(), short.counts())
    assert int(short.counts().sum()) == int((rows[:, :-1] != PAD).sum()) * MODEL.num_hidden_layers
