"""The verbs for a person on a node: tables, JSON, the doctor's words, recordings there and back."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from agents.node import doctor
from agents.node.main import main
from agents.node.recording import Recorder, Recording, RecordingError
from agents.node.sources.base import SourceError
from agents.node.sources.replay import ReplaySource
from agents.node.sources.simulated import SimulatedSource
from agents.readings import METRICS, UNKNOWN, NodeSample
from agents.stub.node import StubNode

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "agents" / "recordings").glob("*.gz"))


def test_once_shows_the_node_and_what_cannot_be_read(stub: StubNode, capsys: pytest.CaptureFixture[str]) -> None:
    stub.source.follow(3.0)
    for second in range(1, 6):
        stub.beat(float(second))
    assert main(["once", "--source", "auto", "--host-root", str(stub.tree), "--node", "node-a"]) == 0
    said = capsys.readouterr().out
    assert "0000:65:00.0" in said and "ionic_3" in said and "stub library" in said and "no rule fires" in said
    assert "blind: no kubelet" in said


def test_once_as_json_has_every_metric_and_null_for_unknown(stub: StubNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["once", "--host-root", str(stub.tree), "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["gpus"][3]) == {metric.name for metric in METRICS["gpu"]}
    assert found["gpus"][3]["xgmi_link_3_kb"] is None and found["gpus"][3]["present"] == 1
    assert found["simulated"] is True and len(found["nics"]) == 8 and len(found["hosts"]) == 1


def test_watch_ends_when_it_is_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--source", "simulated", "-o", "json", "--seconds", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["gpus"]


def test_a_node_without_amds_library_is_told_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    monkeypatch.setattr("agents.node.opening.has_library", lambda: False)
    assert main(["once", "--source", "amd"]) == 1
    assert "amd-smi-lib" in capsys.readouterr().err


def test_the_doctor_says_what_is_there_what_is_missing_and_how_to_get_it(
    stub: StubNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "RENDER_NODES", stub.at / "dri")
    assert main(["doctor", "--host-root", str(stub.tree)]) == 0
    said = capsys.readouterr().out
    assert "8 answer, amdsmi 7.0.2 over library 26.0.2" in said and "8 ports" in said
    assert "video" in said, "no render node: how to get one"
    assert main(["doctor", "--host-root", str(stub.tree / "nowhere"), "-o", "json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert not found["kernel log"]["ok"] and "CAP_SYSLOG" in found["kernel log"]["why"]
    assert not found["NIC counters"]["ok"] and found["GPUs"]["ok"]


def test_a_doctor_without_the_library_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> doctor.Check:
        return doctor.Check("GPUs", doctor.NEEDED, "the amdsmi package is not installed")

    monkeypatch.setattr(doctor, "_gpus", missing)
    said: list[str] = []
    assert doctor.report(list(doctor.checks(tmp_path)), said.append) == 1
    assert any("MISSING" in line and "amdsmi" in line for line in said)


def test_the_doctor_knows_of_a_package_with_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._packages().ok
    papers = tmp_path / "openai_agents-0.9.dist-info" / "METADATA"
    papers.parent.mkdir()
    papers.write_text("Metadata-Version: 2.1\nName: openai-agents\nVersion: 0.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "openai-agents 0.9" in doctor._packages().why


# --- recordings ------------------------------------------------------------------------------------------------------


def recorded(path: Path, drill: str, seconds: int = 8) -> list[NodeSample]:
    source = SimulatedSource("node-a", 0.0)
    recorder, samples = Recorder(path, source.facts()), []
    for second in range(1, seconds + 1):
        if second == 4:
            source.apply_drill(drill, 3)
        samples.append(source.sample(100.0 + second, float(second)))
        recorder.add(samples[-1])
    recorder.close()
    return samples


def test_what_is_recorded_comes_back_second_by_second(tmp_path: Path) -> None:
    samples = recorded(tmp_path / "a.gz", "gpu-reset")
    recording = Recording(tmp_path / "a.gz")
    assert recording.facts == SimulatedSource("node-a", 0.0).facts()
    for moment, sample in zip(recording, samples, strict=True):
        again = moment.sample(sample.at_s, sample.monotonic_s)
        assert (again.gpus, again.nics, again.host) == (sample.gpus, sample.nics, sample.host)
        assert [replace(line, at_s=0.0) for line in again.kernel] == [replace(line, at_s=0.0) for line in sample.kernel]
        assert all(abs(one.at_s - other.at_s) < 0.01 for one, other in zip(again.kernel, sample.kernel, strict=True))
    recording.close()


def test_a_replay_finds_what_was_there_through_the_same_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "a.gz", "hbm-uncorrectable")
    assert main(["replay", str(tmp_path / "a.gz"), "-o", "json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["rule"], one["entity"], one["after_s"]) for one in told] == [("hbm-uncorrectable", "gpu3", 3.0)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_recording_that_ships_is_of_the_drill_in_its_name(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"({path.stem})" in said and ("GPU 3" in said or "NIC 3" in said)


def test_recordings_ship() -> None:
    assert len(SHIPPED) >= 4


def test_a_replayed_node_is_unknown_after_its_last_second(tmp_path: Path) -> None:
    samples = recorded(tmp_path / "a.gz", "clear")
    source = ReplaySource(tmp_path / "a.gz")
    for second in range(len(samples)):
        assert source.sample(float(second), float(second)).gpus == samples[second].gpus
    after = source.sample(99.0, 99.0)
    assert source.over and set(after.gpus[0]) == {UNKNOWN} and source.simulated and source.facts().simulated
    assert "was" in source.apply_drill("gpu-lost", 0)
    source.close()


def test_metrics_that_a_recording_does_not_know_are_unknown(tmp_path: Path) -> None:
    recorded(tmp_path / "a.gz", "clear", seconds=1)
    head, row = gzip.decompress((tmp_path / "a.gz").read_bytes()).decode().splitlines()
    told, values = json.loads(head), json.loads(row)
    told["metrics"]["gpu"] = told["metrics"]["gpu"][:5]
    values["gpu"] = [gpu[:5] for gpu in values["gpu"]]
    (tmp_path / "old.gz").write_bytes(gzip.compress(f"{json.dumps(told)}\n{json.dumps(values)}\n".encode()))
    (moment,) = Recording(tmp_path / "old.gz")
    assert moment.rows["gpu"][0][4] != UNKNOWN and set(moment.rows["gpu"][0][5:]) == {UNKNOWN}


@pytest.mark.parametrize(
    "body",
    [b"", b"no gzip", gzip.compress(b"{}", mtime=0), gzip.compress(b'{"recording": 9}', mtime=0)],
    ids=["empty", "text", "no head", "version 9"],
)
def test_what_is_no_recording_is_refused_in_words(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "x.gz").write_bytes(body)
    with pytest.raises(RecordingError, match=r"x\.gz is (?:no recording|a recording of version 9)"):
        Recording(tmp_path / "x.gz")
    with pytest.raises(SourceError):
        ReplaySource(tmp_path / "x.gz")
    assert main(["replay", str(tmp_path / "x.gz")]) == 1


def test_a_recording_that_is_broken_off_says_so(tmp_path: Path) -> None:
    recorded(tmp_path / "a.gz", "clear")
    whole = (tmp_path / "a.gz").read_bytes()
    (tmp_path / "b.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordingError):
        list(Recording(tmp_path / "b.gz"))
