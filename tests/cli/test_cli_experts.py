"""`trimtab experts`: the tables say what the store holds, files are whole or not there, refusals are sentences."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update
from trimtab_process import TRIMTAB

from controlplane.cli import experts as command
from controlplane.cli import experts_replay, main, output, serve
from controlplane.client import Client
from controlplane.clock import SystemClock
from controlplane.services import experts_export
from controlplane.settings import SettingsError, load
from controlplane.store import expert_merging, expert_thinning, experts
from controlplane.store.engine import Store
from controlplane.store.expert_thinning import DAY_S, Policy
from controlplane.store.tables import Run
from jobs.spec import load_template
from tests.api.conftest import Api, serving
from tests.services.batches import add_run
from tests.store.test_store_experts import record, write

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def api(_migrated_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server with three active runs: run-1 was thinned, run-2 has a dead expert in layer 1, run-3 has no record."""
    folder = tmp_path_factory.mktemp("experts")
    (folder / "store.db").write_bytes(_migrated_file.read_bytes())
    store = Store(f"sqlite:///{folder / 'store.db'}")
    for run in ("run-1", "run-2", "run-3"):
        add_run(store, run)
    with store.write() as session:
        session.execute(update(Run).values(spec=load_template("toy").to_dict()))
    write(store, [record(step) for step in range(1, 700)], size=64)
    expert_merging.compact_once(store)
    expert_thinning.thin_once(store, 1.8e9 + 60 * DAY_S, Policy())
    dying = []
    for step in range(500, 520):
        one = replace(record(step, run_id="run-2"), counts=np.full((3, 5), 300, np.uint32))
        one.counts[1, 2] = 0
        facts = np.array([[30.5, 31.5, 32.5], [np.nan, 0.125, 0.25], [np.nan] * 3], np.float32)
        dying.append(replace(one, facts=facts) if step == 510 else one)
    write(store, dying)
    with serving(store, folder) as made:
        yield made
    store.close()


@pytest.fixture
def ask(api: Api, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Ask]:
    """Runs a command as `trimtab` does; its exit code, stdout and stderr."""
    monkeypatch.setenv("TRIMTAB_URL", api.url)
    monkeypatch.setenv("TRIMTAB_TOKEN", api.token(role="viewer"))
    monkeypatch.chdir(tmp_path)
    made: list[Client] = []

    def connect() -> Client:
        made.append(output.connect())
        return made[-1]

    monkeypatch.setattr(command, "connect", connect)
    monkeypatch.setattr(experts_replay, "connect", connect)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trimtab", "experts", *words])
        code = 0
        try:
            main.main()
        except SystemExit as error:
            code = int(error.code or 0)
        told = capfd.readouterr()
        return code, told.out, told.err

    yield run
    for client in made:
        client.close()


def test_show_has_the_words_a_row_a_layer_and_the_experts_of_one(ask: Ask) -> None:
    code, out, _ = ask("show", "run-2", "--layer", "1")
    assert code == 0
    assert "20 of the 64 steps that are judged together" in out and "Layer 1 has 1 dead expert." in out
    assert "step 519 of attempt 1" in out and "3 layers, 4 experts, top-1" in out
    head = next(line for line in out.splitlines() if line.startswith("LAYER"))
    assert head.split("  ")[0] == "LAYER" and "CV ÷ FLOOR" in head and "LAG-1" in head
    rows = out[out.index(head) :].splitlines()[1:4]
    assert [row.split()[0] for row in rows] == ["0", "1", "2"]
    assert "20.00 %" in rows[0] and "0.00× " in rows[0] and "× warn " in rows[1]
    lines = out[out.index("Layer 1: tokens of each expert") :].splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3", "skip"]
    assert "1.33" in lines[0] and lines[2].endswith("dead") and "300 tokens" in lines[4]
    assert lines[0].count("█") == round(command.BAR * (4 / 3) / 2)


def test_show_has_router_facts_where_any_are_known(ask: Ask) -> None:
    out = ask("show", "run-2")[1]
    lines = out[out.index("LAYER  ") :].splitlines()
    assert lines[0].split("LAG-1")[1].split() == ["Z-LOSS", "MARGIN"]
    assert [line.split()[-2:] for line in lines[1:4]] == [["30.500", "–"], ["31.500", "0.1250"], ["32.500", "0.2500"]]
    assert lines[4] == "z-loss, margin: of step 510, the newest that has them"
    found = json.loads(ask("show", "run-2", "-o", "json")[1])
    known = [(row["z_loss"], row["margin"], row["dropped_share"]) for row in found["by_layer"]]
    assert (found["facts_step"], known[0], known[1]) == (510, (30.5, None, None), (31.5, 0.125, None))
    assert "Z-LOSS" not in ask("show", "run-1")[1]


def test_show_takes_a_step_and_every_form(ask: Ask) -> None:
    found = json.loads(ask("show", "run-1", "--step", "200", "-o", "json")[1])
    assert (found["step"], len(found["by_layer"]), found["by_slot"]) == (200, 3, None)
    assert ask("show", "run-1", "-o", "name")[1] == "run-1\n"
    for words, code, said in (
        (("show", "run-1", "--step", "450"), 102, "the nearest step that has them is 448"),
        (("show", "run-1", "--layer", "3"), 102, "It has layers 0 to 2"),
        (("show", "run-3"), 102, "no expert record of run-3 yet"),
        (("show", "nobody"), 102, "There is no run nobody"),
    ):
        answer = ask(*words)
        assert (answer[0], answer[1]) == (code, "") and said in answer[2], answer


def test_top_shows_the_worst_layers_of_all_runs_first(ask: Ask, api: Api) -> None:
    code, out, err = ask("top", "--once")
    lines = out.splitlines()
    assert code == 0, err
    assert lines[0] == "2 runs, 6 layers"
    rows = [line.split() for line in lines[2:]]
    assert len(rows) == 6 and rows[0][:3] == ["run-2", "519", "1"]
    values = [float(row[3].rstrip("×")) for row in rows[1:]]
    assert values == sorted(values, reverse=True)
    client = Client(api.url, api.token(role="viewer"))
    few = command.live(client, "run-1", rows=2).splitlines()
    client.close()
    assert len(few) == 4 and few[0].startswith("1 run, 3 layers")
    assert ask("top", "run-3", "--once")[0] == 102


def test_top_goes_on_until_it_is_interrupted(api: Api) -> None:
    env = {**os.environ, "TRIMTAB_URL": api.url, "TRIMTAB_TOKEN": api.token(role="viewer"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*TRIMTAB, "experts", "top", "run-2"],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell runs the tests aside
    ) as shown:
        assert shown.stdout is not None
        heads = 0
        while heads < 2:
            heads += shown.stdout.readline().startswith("1 run, 3 layers")
        shown.send_signal(signal.SIGINT)
        shown.communicate(timeout=30)
    assert shown.returncode == 0


def test_export_writes_a_whole_file_and_says_which(ask: Ask, tmp_path: Path) -> None:
    code, out, err = ask("export", "run-1", "--layers", "0-1", "--from", "690", "--to", "695")
    assert (code, out, err) == (0, "run-1-experts-loads.csv\n", "0.0 MB\n")
    with (tmp_path / "run-1-experts-loads.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows[::10]] == list(range(690, 696))
    assert ask("export", "run-1", "--format", "npz", "-o", "some.npz")[1] == "some.npz\n"
    assert np.load("some.npz")["counts"].shape[1:] == (3, 5)
    (tmp_path / "folder").mkdir()
    assert ask("export", "run-1", "--to", "1", "-o", "folder")[1] == "folder/run-1-experts-loads.csv\n"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["run-1-experts-loads.csv"]
    straight = ask("export", "run-1", "--what", "layers", "--to", "1", "-o", "-")[1].splitlines()
    assert straight[0].startswith("run,attempt,step,at,layer,ranks,tokens,maxvio") and len(straight) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "run-1-experts-loads.csv", "some.npz"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run-1", "--from", "900"), 102, "There are steps 1 to 699"),
        (("run-1", "--from", "450", "--to", "460"), 102, "The nearest step that has them is 448"),
        (("run-1", "--layers", "3-1"), 2, "must be layers as in 0-5,9, not 3-1"),
        (("run-1", "-o", "nowhere/file.csv"), 1, "nowhere/file.csv cannot be written: No such file or directory"),
        (("run-3",), 102, "run-3 has no expert record yet"),
    ],
)
def test_an_export_that_cannot_be_is_a_sentence_and_no_file(
    ask: Ask, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    answer = ask("export", *words)
    assert (answer[0], answer[1]) == (code, "") and said in answer[2], answer
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_breaks_off_leaves_no_file(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = experts_export._csv

    def broken(*blocks: Iterator[experts_export.Columns]) -> Iterator[bytes]:
        yield next(whole(*blocks))
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(experts_export, "_csv", broken)
    code, _, err = ask("export", "run-1")
    assert code == 6 and "does not answer to the end" in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_the_server_is_replayed_by_the_same_matrices(ask: Ask) -> None:
    code, out, err = ask("replay", "run-2")
    assert (code, out) == (output.EXIT.USAGE, "")
    assert "run-2 cannot be replayed: 20 steps are too few" in err or "19 steps are too few" in err


def test_a_replay_fetches_the_steps_that_it_looks_at_and_no_others(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[bytes] = []
    whole = experts_replay._fetched
    monkeypatch.setattr(experts_replay, "_fetched", lambda run, steps: fetched.append(whole(run, steps)) or fetched[-1])
    ask("replay", "run-1", "--steps", "64")
    assert np.load(io.BytesIO(fetched[0]))["step"].tolist() == list(range(635, 700))


def test_the_servers_loop_thins_by_its_settings(tmp_path: Path) -> None:
    chosen = load({"data": tmp_path, "dashboard": False, "expert_raw_days": 0, "expert_eighth_days": 1})
    server = serve.build(chosen, ("127.0.0.1", 1), SystemClock())
    try:
        now = time.time()
        write(server.store, [replace(record(step), at_s=now - 1000 + step) for step in range(768)], size=64)
        server.leadership.campaign_once()
        loops = {loop.name: loop for loop in server.loops}
        for name in ("compaction", "pruning"):
            loops[name].once()
        with server.store.read() as session:
            left = {one.step for one in experts.window(session, "run-1", last=767, limit=768)}
        assert left == {*range(256), *range(256, 768, 8), *range(767 - 64, 768)}
    finally:
        server.leadership.release()
        server.store.close()


def test_days_must_be_days_and_in_order() -> None:
    with pytest.raises(SettingsError, match=r"expert_raw_days .* must be days, 0 to 65535, not 'a week'"):
        load({}, {"TRIMTAB_EXPERT_RAW_DAYS": "a week"})
    with pytest.raises(SettingsError, match=r"must be 40 \(expert_raw_days\) or more, not 30"):
        load({}, {"TRIMTAB_EXPERT_RAW_DAYS": "40"})


def test_a_bar_is_as_long_as_its_load() -> None:
    assert command.bar(0.0, 2.0) == " " * 12 + "┊" + " " * 11
    assert command.bar(2.0, 2.0) == "█" * 24 and command.bar(9.0, 2.0) == "█" * 24
    assert command.bar(1.0, 2.0).startswith("█" * 12 + "┊")
    assert command.bar(1.0, 3.0)[:9] == "█" * 8 + "┊"
    assert command.bar(0.51, 24.0)[0] == "▌"
