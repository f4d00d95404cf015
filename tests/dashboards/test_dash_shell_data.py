"""Reads and writes of a page: the viewer's own token, short memory, no address outside the API, refusals as words."""

from collections.abc import Callable, Iterator

import pytest
import streamlit as st
from fake_api import World, serving

from controlplane.settings import Settings
from dashboards import data


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with serving(World()) as found:
        monkeypatch.setenv(data.API_VARIABLE, found.url)
        monkeypatch.setattr(st, "session_state", {})
        monkeypatch.setattr(data, "token", lambda: "tt_login_viewer")
        yield found


def paths(world: World) -> list[str]:
    return [path for _, path, _ in world.calls]


def test_one_page_asks_once_and_later_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = [10.0]
    monkeypatch.setattr(data, "_clock", lambda: moment[0])
    for _ in range(3):
        assert data.get("session")["role"] == "viewer"
    assert paths(world) == ["/session"]
    moment[0] += data.TTL_S + 0.01
    data.get("session")
    assert paths(world) == ["/session"] * 2


def test_two_viewers_share_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    data.get("session")
    monkeypatch.setattr(st, "session_state", {})
    monkeypatch.setattr(data, "token", lambda: "tt_login_operator")
    assert data.get("session")["role"] == "operator"


def test_connections_are_few_and_the_unused_are_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CLIENTS", 2)
    data.close()
    for token in ("tt_login_viewer", "tt_login_operator", "tt_login_viewer", "third", "fourth"):
        data._client(world.url, token)
    assert [token for _, token in data._clients] == ["third", "fourth"]
    data.close()
    assert not data._clients


def test_a_write_forgets_what_was_read(world: World) -> None:
    data.get("nodes")
    data.post("nodes/sim-node-003/cordon", {"reason": "x"}, idempotency_key="k1")
    assert next(row for row in data.get("nodes")["nodes"] if row["name"] == "sim-node-003")["cordoned"]
    assert world.posts == [("nodes/sim-node-003/cordon", "k1", {"reason": "x"})]


@pytest.mark.parametrize("path", ["runs/../tokens", "runs//x", "nodes/.", "", "runs/"])
def test_an_address_never_leaves_its_place(world: World, path: str) -> None:
    with pytest.raises(data.ApiError) as refused:
        data.get(path)
    assert refused.value.status == 404
    assert world.calls == []


def test_a_name_with_a_slash_in_an_address_bar_is_one_segment(world: World) -> None:
    with pytest.raises(data.ApiError) as refused:
        data.get("nodes/a?b#c")
    assert refused.value.status == 404
    assert paths(world) == ["/nodes/a%3Fb%23c"]


def test_a_refusal_is_words_and_is_not_kept(world: World) -> None:
    world.broken["/nodes"] = 500
    with pytest.raises(data.ApiError) as refused:
        data.get("nodes")
    assert data.reason(refused.value) == "It does not work today."
    world.broken.clear()
    assert data.get("nodes")["nodes"]


def test_without_a_word_the_api_is_where_the_server_is_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.API_VARIABLE, raising=False)
    assert data.api_url() == f"http://127.0.0.1:{Settings().port}"
    monkeypatch.setenv(data.API_VARIABLE, "https://trimtab.example/")
    assert data.api_url() == "https://trimtab.example"


def test_the_problems_of_a_body_are_told_with_their_paths() -> None:
    problems = [{"path": "resources.nodes", "message": "must be ≥ 1"}, {"path": "", "message": "and more"}]
    error = data.ApiError(422, "invalid", "The job is not valid", "", "", problems)
    assert data.reason(error) == "resources.nodes: must be ≥ 1; and more"


def test_no_answer_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(data.API_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setattr(st, "session_state", {})
    monkeypatch.setattr(data, "token", lambda: "")
    with pytest.raises(data.ApiError) as refused:
        data.get("nodes")
    assert (refused.value.status, refused.value.code) == (0, "unreachable")
    assert data.session() == {} and data.simulated() is False


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("tt_login_operator", ""),
        ("tt_login_viewer", "Your role, viewer, may look but not act."),
        ("nobody-at-all", "It is not known whether you may act."),
    ],
)
def test_who_may_act(world: World, monkeypatch: pytest.MonkeyPatch, token: str, words: str) -> None:
    given: Callable[[], str] = lambda: token  # noqa: E731  a value, not a function of its own
    monkeypatch.setattr(data, "token", given)
    assert data.may_act() == words
