"""The Jobs page: normal, filtered, empty, broken."""

from collections.abc import Iterator

import pytest
import samples_runs as samples
from fake_runs import FakeApi, serving
from pages_under_test import markup, open_page
from streamlit.testing.v1 import AppTest


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    with serving() as fake:
        monkeypatch.setenv("TRIMTAB_API_URL", fake.url)
        yield fake


def jobs(**query: str) -> AppTest:
    page = open_page("jobs", **query)
    assert not page.exception, page.exception
    return page


def test_the_list_links_each_run_to_its_page(api: FakeApi) -> None:
    text = markup(jobs())
    assert f'href="/job?run={samples.RUN_ID}"' in text
    for part in ("zaya-toy", "140 of 160", "training", "sim-node-01, sim-node-03", "3,720", "admin"):
        assert part in text


def test_filters_live_in_the_address(api: FakeApi) -> None:
    ended = samples.run_row(id="r-2", name="over-and-done", status="succeeded")
    api.answers["GET runs"] = {"runs": [samples.run_row(), ended], "next": None}
    assert "over-and-done" in markup(jobs())
    text = markup(jobs(group="live"))
    assert "over-and-done" not in text
    assert "zaya-toy" in text
    assert "zaya-toy" not in markup(jobs(find="done"))
    assert "None of 2 runs matches" in markup(jobs(find="nothing like it"))


def test_an_empty_list_offers_the_first_submission(api: FakeApi) -> None:
    api.answers["GET runs"] = {"runs": [], "next": None}
    text = markup(jobs())
    assert "No run has been submitted yet." in text
    assert 'href="/submit"' in text
    assert "Submit the first run" in text


def test_a_broken_server_is_told_with_its_code(api: FakeApi) -> None:
    api.refuse("GET runs", 500, "internal", "Something failed.")
    assert "internal" in markup(jobs())
