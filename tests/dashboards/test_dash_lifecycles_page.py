"""The Lifecycles page: the list, the empty one with its templates, and a plan that is checked before it is sent."""

from collections.abc import Iterator

import fake_lifecycles as samples
import pytest
from fake_runs import Call, FakeApi, serving
from pages_under_test import markup, open_page
from streamlit.testing.v1 import AppTest

from dashboards.views import lifecycles as view


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    with serving() as fake:
        fake.answers |= samples.answers()
        monkeypatch.setenv("TRIMTAB_API_URL", fake.url)
        yield fake


def lifecycles(**query: str) -> AppTest:
    page = open_page("lifecycles", **query)
    assert not page.exception, page.exception
    return page


def test_the_list_puts_what_waits_for_a_person_on_top(api: FakeApi) -> None:
    trains = samples.training_view()
    working = samples.row(id="two", name="newer", waits_for_person=False, created_s=samples.BEGUN + 9)
    working |= {"stages": trains["stages"], "progress": trains["stages"][1]["progress"]}
    api.answers["GET lifecycles"] = {"lifecycles": [working, samples.row()], "next": None}
    text = markup(lifecycles())
    assert text.index(">walk<") < text.index(">newer<")
    for part in (
        "waits for a person",
        "gate refuses",
        'aria-label="1 of 3 stages passed"',
        "step 640 of 1,000",
        '<td class="tt-num">33.3</td><td class="tt-num">1.40</td><td class="tt-num">0.80</td>',
    ):
        assert part in text
    assert f'href="/lifecycle?lifecycle={samples.ID}&amp;stage=sft"' in text
    asked = [call.query for call in api.calls if call.path == "lifecycles"]
    assert asked == [{"limit": "100"}]


def test_the_server_filters_so_that_no_age_hides_what_waits(api: FakeApi) -> None:
    old = samples.row(id="old", name="for-weeks")
    young = [samples.row(id=f"y{at}", name=f"young-{at}", waits_for_person=False) for at in range(view.LIMIT)]

    def listed(call: Call) -> dict[str, object]:
        if call.query.get("waits_for_person") == "true":
            return {"lifecycles": [old], "next": None}
        return {"lifecycles": [] if call.query.get("status") else young, "next": "y99"}

    api.answers["GET lifecycles"] = listed
    text = markup(lifecycles(group="needs a person"))
    assert ">for-weeks<" in text and "young" not in text
    text = markup(lifecycles())
    assert text.index(">for-weeks<") < text.index(">young-0<")
    assert "The newest 100 and, of the older ones, those that wait for a person are shown." in text
    assert "No lifecycle matches this filter." in markup(lifecycles(group="ended"))
    assert [call for call in api.calls if call.query.get("status") == "succeeded,failed,cancelled"]


def test_the_list_asks_for_itself_alone_and_an_unknown_cost_is_no_zero(api: FakeApi) -> None:
    api.answers["GET lifecycles"] = {"lifecycles": [samples.row(cost=None, waits_for_disk=True)], "next": None}
    text = markup(lifecycles())
    assert '<td class="tt-num">–</td>' * 3 in text
    assert [call.path for call in api.calls if call.path.startswith("lifecycles/")] == []


def test_one_that_waits_for_a_disk_says_so(api: FakeApi) -> None:
    row = samples.row(waits_for_person=False, waits_for_disk=True, reason="Stage sft waits: cannot read /data/<x>")
    api.answers["GET lifecycles"] = {"lifecycles": [row], "next": None}
    text = markup(lifecycles())
    assert "cannot read a disk" in text and 'title="Stage sft waits: cannot read /data/&lt;x&gt;"' in text


def test_an_empty_list_names_the_templates_and_how_to_submit(api: FakeApi) -> None:
    api.answers["GET lifecycles"] = {"lifecycles": [], "next": None}
    page = lifecycles()
    text = markup(page)
    assert "No lifecycle has been submitted yet." in text
    assert 'href="/lifecycles?new=toy"' in text and "pretrain → sft → release" in text
    assert page.code[0].value == "trimtab lifecycle submit toy --dry-run"


def test_a_template_is_checked_compared_and_submitted_once(api: FakeApi) -> None:
    page = lifecycles(new="toy")
    text = markup(page)
    assert page.text_area(key="lifecycle_yaml").value == samples.YAML
    for part in ("2 stages on up to 1 node", "its job succeeds", "against walk of"):
        assert part in text
    assert 'class="tt-cut"><span>-</span>stages.pretrain.budget.retries: 2' in text
    assert 'class="tt-add"><span>+</span>stages.pretrain.budget.retries: 1' in text
    page.button(key="lifecycle_submit").click().run()
    assert [(call.path, call.body) for call in api.writes()] == [("lifecycles", {"yaml": samples.YAML})]
    assert api.writes()[0].key
    assert page.session_state["tt_went"] == ("lifecycle", {"lifecycle": samples.ID})


def test_every_problem_stands_behind_its_path_and_bars_the_submission(api: FakeApi) -> None:
    problems = [
        {"path": "spec.stages[1].gate.require[0]", "message": "must compare <a> metric"},
        {"path": "spec.stages[2].from", "message": "there is no stage pretran"},
    ]
    wrong = {"problems": problems, "sentence": "2 things to mend.", "stages": [], "against": None, "diff": []}
    api.answers["POST lifecycles/validate"] = wrong
    page = lifecycles(new="paste")
    text = markup(page)
    assert 'spec.stages[1].gate.require[0]</b><span class="tt-muted">must compare &lt;a&gt; metric</span>' in text
    assert "spec.stages[2].from" in text
    assert page.button(key="lifecycle_submit").disabled
    api.answers["POST lifecycles/validate"] = samples.VALID
    page.text_area(key="lifecycle_yaml").set_value("kind: Lifecycle\n").run()
    assert [call for call in api.calls if call.path == "lifecycles/validate"][-1].body == {"yaml": "kind: Lifecycle\n"}
    assert not page.button(key="lifecycle_submit").disabled


def test_a_refused_submission_stays_with_its_reason_and_its_key(api: FakeApi) -> None:
    api.refuse("POST lifecycles", 409, "not_now", "A lifecycle of this name is under way.")
    page = lifecycles(new="toy")
    for _ in range(2):
        page.button(key="lifecycle_submit").click().run()
    assert "is under way" in page.error[0].value.replace("\\", "")
    assert len({call.key for call in api.writes()}) == 1
