"""Metric adapters: event files as TensorBoard itself wrote them, verl's lines, printed lines, and steps.jsonl."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import ContractError, Environment
from jobs.meters import events
from jobs.meters.base import Mark, Marks, lines
from jobs.meters.registry import FILE_METERS, LOG_METERS, check
from jobs.meters.tensorboard import TensorBoard
from jobs.steps import FILE, StepScalars, append_step, parse_line

# torch.utils.tensorboard.SummaryWriter of torch 2.13 with TensorBoard 2.21: a text, then "lm loss" (and "lm loss vs
# samples") of steps 10 and 20 as simple values, "grad-norm" as a float tensor and "learning-rate" as a double tensor,
# each at 1000 s + step; last a "lm loss" of NaN at step 30
WRITTEN = gzip.decompress(
    base64.b85decode(
        "ABzY8000000t544fPjCKJmzxl-BlB%fB2T86mL>dVrHJ6YguYuiIq{19+yr@YF=@EQBr<lQHox1X>M*}QKepaQD#YMkzOiDReV}zPHH?vgk|<4"
        "6&t9zC$=vR;*2>AF;~lwOP@<PIX^EgGhM$VwW1^*YLpWn2fGl95EBQZ6H8)Ida)M=7aJD~NX5fFKN)19W+mv~SLOt>CiFW9aA^r}@o}-|<SOLk"
        "7Z-~%Fi1FhZHv;;fGYl9Am)Wo9H1r5CCMcORjg1}tWcboTac3q)yJh*X$aLfx4HQxvLz~9N?e@jMTsf8dHF@TP8=MJS}Z_G2QO|ePA>N1<iwoB"
        "qT(ge>n~bD4d`Y!|A=gW4wn`eZ%%4rQC?<Vx^7WoNvabM2a^$puCvVRM`lv?C<Z0GiK@r+?gOAfBIw@baJ+DK+i^{(V)Os;3<$*w81eX*!*R05"
        "GzComLTn+*zX#7Pn2+gShyf(|_s0HhEtvk5nBX8Fhwk44^-^X@)&Rhywdk+{000"
    )
)


def event_file(folder: Path, body: bytes, name: str = "a") -> Path:
    path = folder / "tensorboard" / f"events.out.tfevents.{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def read(name: str, folder: Path, marks: Marks | None = None) -> tuple[list[StepScalars], Marks]:
    return FILE_METERS[name].read(folder, marks or {})


def test_scalars_of_every_form_that_tensorboard_writes_are_read(tmp_path: Path) -> None:
    event_file(tmp_path, WRITTEN)
    found, marks = read("tensorboard", tmp_path)
    ten, twenty, thirty = found
    assert (ten.step, ten.at_s, ten.loss, ten.grad_norm, ten.learning_rate) == (10, 1010.0, 9.5, 2.0, 1e-4)
    assert (twenty.step, twenty.loss) == (20, 8.5)
    assert thirty.step == 30 and thirty.loss is not None and math.isnan(thirty.loss) and thirty.grad_norm is None
    assert read("tensorboard", tmp_path, marks) == ([], marks), "nothing is told twice"


@given(cut=st.integers(0, len(WRITTEN)))
def test_a_file_that_is_being_written_is_read_on_where_it_ended(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = event_file(folder, WRITTEN[:cut])
    first, marks = read("tensorboard", folder)
    with path.open("ab") as file:
        file.write(WRITTEN[cut:])
    second, _ = read("tensorboard", folder, marks)
    whole: dict[int, StepScalars] = {}
    for step in (*first, *second):
        whole[step.step] = whole[step.step].completed_by(step) if step.step in whole else step
    assert repr(list(whole.values())) == repr(read("tensorboard", folder)[0])


def test_a_wrong_checksum_ends_the_reading_of_that_file_alone(tmp_path: Path) -> None:
    body = bytearray(WRITTEN)
    at = WRITTEN.index(b"lm loss", 200)
    body[at] ^= 1
    event_file(tmp_path, bytes(body))
    event_file(tmp_path, WRITTEN, "b")
    found, marks = read("tensorboard", tmp_path)
    assert [step.step for step in found] == [10, 20, 30]
    (broken,) = (mark for path, mark in marks.items() if path.endswith(".a"))
    assert "wrong checksum" in broken.broken and broken.offset < at
    with pytest.raises(events.BrokenRecord):
        list(events.records(bytes(body)))


@given(st.binary(max_size=200))
def test_no_bytes_upset_the_reader(body: bytes) -> None:
    assert all(isinstance(one, events.Scalar) for one in events.scalars(body))
    with contextlib.suppress(events.BrokenRecord):
        assert list(events.records(body)) == []


def test_the_checksum_is_that_of_the_format() -> None:
    # CRC-32C of "123456789" is e3069283 (RFC 3720, B.4 gives the polynomial's vectors)
    assert events.masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_what_counts_from_nought_has_one_added(tmp_path: Path) -> None:
    event_file(tmp_path, WRITTEN)
    found, _ = TensorBoard("other", {"lm loss": "loss"}, counts_from=0).read(tmp_path, {})
    assert [(step.step, step.loss) for step in found][:2] == [(11, 9.5), (21, 8.5)]
    assert FILE_METERS["roll"].replays and not FILE_METERS["tensorboard"].replays


def test_verl_s_lines_are_read_and_a_file_that_it_cut_is_read_anew(tmp_path: Path) -> None:
    def line(step: int, **data: object) -> str:
        return json.dumps({"step": step, "data": data}) + "\n"

    path = tmp_path / "metrics.jsonl"
    assert read("verl", tmp_path) == ([], {})
    path.write_text(line(0, **{"val-core/acc": 0.1}) + line(1, **{"actor/pg_loss": 0.5, "perf/time_per_step": 40.0}))
    found, marks = read("verl", tmp_path)
    assert found == [StepScalars(1, loss=0.5, step_seconds=40.0)]
    with path.open("a") as file:
        file.write(
            line(2, **{"actor/loss": 0.4, "actor/grad_norm": "NaN", "perf/total_num_tokens": 9000}) + '{"step": 3'
        )
    found, marks = read("verl", tmp_path, marks)
    assert [(step.step, step.loss, step.tokens) for step in found] == [(2, 0.4, 9000)]
    assert found[0].grad_norm is not None and math.isnan(found[0].grad_norm)
    path.write_text(line(1, **{"actor/pg_loss": 0.7}))  # verl opens it for writing again
    found, marks = read("verl", tmp_path, marks)
    assert [(step.step, step.loss) for step in found] == [(1, 0.7)]
    path.write_text("[1]\n{}\nnonsense\n" + line(2, **{"actor/pg_loss": [1]}))
    assert read("verl", tmp_path)[0] == [StepScalars(2)]


MEGATRON = """
 > finished creating GPT datasets ...
 [2026-11-29 10:00:00.123456] iteration       10/     100 | consumed samples:           80 | elapsed time per iteration (ms): 1234.5 | throughput per GPU (TFLOP/s/GPU): 401.2 | learning rate: 1.500000E-04 | global batch size:     8 | lm loss: 1.051234E+01 | loss scale: 1.0 | grad norm: 2.345 | number of skipped iterations:   0 | number of nan iterations:   0 |
 iteration       20/     100 | consumed samples:          160 | elapsed time per iteration (ms): 1200.0/1217.3 | lm loss: nan | grad norm: inf |
 validation loss at iteration 20 | lm loss value: 9.0E+00 | lm loss PPL: 8.1E+03 |
"""  # noqa: E501  # as Megatron prints it; the second line as its fork for ROCm does
TORCHTITAN = """
[rank0]:2026-11-29 10:00:00,000 - root - INFO - \x1b[31mstep:  1  \x1b[32mloss:  8.24380  \x1b[38;2;180;60;0mgrad_norm:  1.5000  \x1b[36mmemory: 12.00GiB(6.25%)  \x1b[34mtps: 1,234  \x1b[35mmfu: 30.00%\x1b[39m
[rank0]:2026-11-29 10:00:05,000 - root - INFO - \x1b[33mvalidate step:  1  \x1b[32mloss:  8.0  \x1b[38;2;54;234;195mmemory: 1GiB
[rank0]:2026-11-29 10:00:09,000 - root - INFO - step: 10  loss:  7.50000  grad_norm:  1.2500  memory: 12.00GiB(6.25%)
"""  # noqa: E501  # as torchtitan prints it, with its colours


def test_printed_lines_are_steps_and_validations_are_none() -> None:
    ten, twenty = LOG_METERS["megatron-log"].steps(MEGATRON)
    assert ten == StepScalars(10, loss=10.51234, grad_norm=2.345, learning_rate=1.5e-4, step_seconds=1.2345)
    assert (twenty.step, twenty.step_seconds, twenty.grad_norm) == (20, 1.2, math.inf)
    assert twenty.loss is not None and math.isnan(twenty.loss)
    found = LOG_METERS["torchtitan-log"].steps(TORCHTITAN)
    assert found == [StepScalars(1, loss=8.2438, grad_norm=1.5), StepScalars(10, loss=7.5, grad_norm=1.25)]
    assert LOG_METERS["megatron-log"].last_member and not LOG_METERS["torchtitan-log"].last_member


def test_a_trainer_appends_its_steps_and_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    environment = Environment.read({"TRIMTAB_RUN_DIR": str(tmp_path), "TRIMTAB_ATTEMPT": "2", "TRIMTAB_EPOCH": "3"})
    append_step(environment, 1, 7, loss=2.5, lr=1e-3, tokens=512)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 8, "lo{"step": 9}\n')
    append_step(environment, 1, 10, loss=math.nan)
    found, mark = lines(tmp_path / FILE, Mark())
    assert mark.offset == os.path.getsize(tmp_path / FILE)
    first, torn, last = map(parse_line, found)
    assert first is not None and torn is None and last is not None
    assert (first.step, first.rank, first.attempt_no, first.epoch, first.loss) == (7, 1, 2, 3, 2.5)
    assert (first.learning_rate, first.tokens, first.grad_norm) == (1e-3, 512, None)
    assert first.at_s is not None and last.loss is not None and math.isnan(last.loss)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b'{"step": 0}', b'{"step": 1.5}', b'{"step": true}', b'{"step": 99999999999}']
)
def test_what_has_no_step_is_no_step(line: bytes) -> None:
    assert parse_line(line) is None


def test_numbers_of_another_kind_are_unknown() -> None:
    found = parse_line(b'{"step": 4, "loss": "high", "tokens": 1.5, "rank": -9, "grad_norm": [], "attempt_no": "2"}')
    assert found == StepScalars(4)


def test_an_unknown_meter_says_which_there_are() -> None:
    check("verl")
    with pytest.raises(ContractError, match=r"did you mean megatron-log\?.*torchtitan-log, verl"):
        check("megatron-logs")
