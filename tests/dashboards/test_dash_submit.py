"""The Submit page: form, YAML box and review are one draft; a submission is sent once, refusals stand at home."""

from collections.abc import Iterator
from typing import Any

import pytest
import samples_runs as samples
import yaml
from fake_runs import Call, FakeApi, serving
from pages_under_test import markup, open_page
from streamlit.testing.v1 import AppTest

from dashboards import draft


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    with serving() as fake:
        monkeypatch.setenv("TRIMTAB_API_URL", fake.url)
        yield fake


def submit(**query: str) -> AppTest:
    page = open_page("submit", **query)
    assert not page.exception, page.exception
    return page


def checked(api: FakeApi) -> Any:
    """The job of the newest validation."""
    return [call for call in api.calls if call.path == "runs/validate"][-1].body["spec"]


def test_the_page_shows_form_and_review_at_once(api: FakeApi) -> None:
    page = submit()
    text = markup(page)
    for part in ("how long it runs is not known", "1 thing to look at", "the text is small", "sim-node-02: cordoned"):
        assert part in text
    assert "each 421 steps" in text
    assert page.text_input(key="submit:metadata.name").value == "zaya-toy"
    assert page.number_input(key="submit:resources.nodes").value == 2
    assert not page.button(key="submit_do").disabled
    assert checked(api) == samples.SPEC


def test_a_changed_field_is_checked_by_the_server_and_shown_in_the_difference(api: FakeApi) -> None:
    page = submit()
    page.number_input(key="submit:resources.nodes").set_value(4).run()
    page.text_input(key="submit:router.skipBias").set_value("-0.5").run()
    assert draft.get(checked(api), "resources.nodes") == 4
    assert draft.get(checked(api), "router.skipBias") == -0.5
    text = markup(page)
    assert 'class="tt-cut"><span>-</span>    nodes: 2' in text
    assert 'class="tt-add"><span>+</span>    nodes: 4' in text
    assert "2 values against toy" in text


def test_a_refused_value_stands_at_its_field_and_bars_the_submission(api: FakeApi) -> None:
    def validate(call: Call) -> dict[str, Any]:
        wrong = call.body["spec"]["spec"]["resources"]["nodes"] < 1
        return {
            **samples.VALIDATION,
            "problems": [{"path": "resources.nodes", "message": "must be ≥ 1"}] if wrong else [],
        }

    api.answers["POST runs/validate"] = validate
    page = submit()
    page.number_input(key="submit:resources.nodes").set_value(0).run()
    assert '<p class="tt-problem" role="alert">× resources.nodes: must be ≥ 1</p>' in markup(page)
    assert page.button(key="submit_do").disabled
    page.number_input(key="submit:resources.nodes").set_value(2).run()
    assert "tt-problem" not in markup(page)
    assert not page.button(key="submit_do").disabled


def test_what_a_cluster_would_be_sent_is_shown_where_there_is_one(api: FakeApi) -> None:
    assert "what the cluster would be sent" not in markup(submit())
    quota = {"level": "warn", "name": "quota research", "sentence": "it waits for 8 to be given back"}
    cluster = {"backend": "kube", "manifests": "kind: Job\n", "asked": True}
    api.answers["POST runs/validate"] = {**samples.VALIDATION, "checks": [quota], "cluster": cluster}
    page = submit()
    assert [one.value for one in page.code if one.language == "yaml"] == ["kind: Job"]
    assert "it waits for 8 to be given back" in markup(page) and not page.button(key="submit_do").disabled


def test_a_failed_check_bars_the_submission_too(api: FakeApi) -> None:
    error = {"level": "error", "name": "nodes", "sentence": "no node is fit"}
    api.answers["POST runs/validate"] = {**samples.VALIDATION, "checks": [error]}
    assert submit().button(key="submit_do").disabled


def test_a_submission_is_sent_once_and_the_next_draft_has_another_key(api: FakeApi) -> None:
    api.refuse("POST runs", 503, "store_locked", "The store is busy.")
    page = submit()
    page.button(key="submit_do").click().run()
    assert any("store is busy" in str(block.value) for block in page.error)
    page.button(key="submit_do").click().run()
    first = [call.key for call in api.writes()]
    assert len(first) == 2
    assert len(set(first)) == 1, "the same draft again is the same submission"
    assert api.writes()[0].body == {"spec": samples.SPEC}
    page.text_input(key="submit:metadata.name").set_value("other").run()
    page.button(key="submit_do").click().run()
    assert api.writes()[-1].key not in first


def test_after_a_submission_the_page_goes_to_the_run(api: FakeApi) -> None:
    page = submit()
    page.button(key="submit_do").click().run()
    assert page.session_state["tt_went"] == ("job", {"run": samples.RUN_ID})


def test_the_yaml_box_and_the_form_are_one_draft(api: FakeApi) -> None:
    page = submit()
    page.toggle(key="submit_edit").set_value(True).run()
    job = yaml.safe_load(page.text_area(key="submit_yaml").value)
    assert job == samples.SPEC
    job["spec"]["train"]["steps"] = 40
    page.text_area(key="submit_yaml").set_value(yaml.safe_dump(job, sort_keys=False)).run()
    assert page.number_input(key="submit:train.steps").value == 40
    page.number_input(key="submit:train.steps").set_value(50).run()
    assert "steps: 50" in page.text_area(key="submit_yaml").value


def test_yaml_that_does_not_read_is_said_and_changes_nothing(api: FakeApi) -> None:
    page = submit()
    page.toggle(key="submit_edit").set_value(True).run()
    page.text_area(key="submit_yaml").set_value("spec: [1,").run()
    assert any("line" in str(block.value) for block in page.error)
    assert page.text_area(key="submit_yaml").value == "spec: [1,", "what was typed is kept"
    assert checked(api) == samples.SPEC
    assert page.button(key="submit_do").disabled, "what would be sent is not what stands in the box"
    page.text_area(key="submit_yaml").set_value(yaml.safe_dump(samples.SPEC)).run()
    assert not page.error
    assert not page.button(key="submit_do").disabled


def test_the_box_is_closed_with_what_did_not_read_in_it(api: FakeApi) -> None:
    page = submit()
    page.toggle(key="submit_edit").set_value(True).run()
    page.text_area(key="submit_yaml").set_value("spec: [1,").run()
    page.toggle(key="submit_edit").set_value(False).run()
    assert not page.button(key="submit_do").disabled
    page.toggle(key="submit_edit").set_value(True).run()
    assert yaml.safe_load(page.text_area(key="submit_yaml").value) == samples.SPEC


def test_a_clone_starts_from_the_runs_own_settings(api: FakeApi) -> None:
    page = submit(clone=samples.RUN_ID)
    assert page.text_input(key="submit:metadata.name").value == "zaya-toy-again"
    assert draft.get(checked(api), "train.steps") == 160
    page.number_input(key="submit:train.steps").set_value(10).run()
    assert page.number_input(key="submit:train.steps").value == 10, "the clone is not begun anew"


def test_another_template_begins_a_new_draft(api: FakeApi) -> None:
    other = draft.with_value(samples.SPEC, "metadata.name", "other")
    api.answers["GET templates"] = {"templates": [{"name": "toy"}, {"name": "other"}]}
    api.answers["GET templates/other"] = {"name": "other", "yaml": yaml.safe_dump(other, sort_keys=False)}
    page = submit(clone=samples.RUN_ID)
    page.button(key="template:other").click().run()
    assert page.text_input(key="submit:metadata.name").value == "other"
    assert "0 values against other" in markup(page)


def test_a_preset_is_offered_as_what_it_is_and_opens_by_its_address(api: FakeApi) -> None:
    preset = draft.with_value(samples.SPEC, "metadata.name", "megatron-gpt")
    api.answers["GET templates"] = {"templates": [{"name": "toy"}], "presets": [{"name": "megatron"}]}
    api.answers["GET templates/megatron"] = {"name": "megatron", "yaml": yaml.safe_dump(preset, sort_keys=False)}
    page = submit()
    told = [one.value for one in page.caption]
    assert [one.split(":")[0] for one in told] == ["Templates", "Presets"]
    page.button(key="template:megatron").click().run()
    assert page.text_input(key="submit:metadata.name").value == "megatron-gpt"
    assert "from preset megatron" in markup(page)
    assert submit(template="megatron").text_input(key="submit:metadata.name").value == "megatron-gpt"


def test_no_template_is_said(api: FakeApi) -> None:
    api.answers["GET templates"] = {"templates": []}
    assert "No template is installed." in markup(submit())


def test_a_server_that_does_not_answer_is_said_and_nothing_is_offered(api: FakeApi) -> None:
    api.refuse("GET templates", 503, "store_locked", "The store is busy.")
    page = submit()
    assert "store_locked" in markup(page)
    assert not page.button


def test_checks_that_cannot_be_asked_bar_the_submission(api: FakeApi) -> None:
    api.refuse("POST runs/validate", 503, "store_locked", "The store is busy.")
    page = submit()
    assert "The store is busy." in markup(page)
    assert page.button(key="submit_do").disabled


def test_a_viewer_may_look_but_not_submit(api: FakeApi) -> None:
    api.answers["GET session"] = {"actor": "guest", "role": "viewer", "kind": "login"}
    assert submit().button(key="submit_do").disabled


def test_hostile_text_never_becomes_markup(api: FakeApi) -> None:
    hostile = samples.HOSTILE
    job = draft.with_value(samples.SPEC, "metadata.name", hostile)
    api.answers["GET templates/toy"] = {"name": "toy", "yaml": yaml.safe_dump(job, sort_keys=False)}
    api.answers["POST runs/validate"] = {
        **samples.VALIDATION,
        "sentence": hostile,
        "problems": [{"path": "metadata.name", "message": hostile}],
    }
    text = markup(submit())
    assert "<img" not in text
    assert "&lt;img" in text
