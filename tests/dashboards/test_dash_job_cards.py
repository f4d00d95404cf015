"""The Job page's blocks: what they say, that they are true to scale, and that no outside text becomes markup."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
import samples_runs as samples

from dashboards.views import job_cards as cards


class Tags(HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text = ""
        self.links: list[str] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_bold_parts_are_marked_once_and_everything_is_escaped() -> None:
    markup = cards.emphasised("a < b and 88 of 880", ["88", "a < b"])
    assert markup == "<b>a &lt; b</b> and <b>88</b> of 880"
    assert cards.emphasised("plain", ["absent", ""]) == "plain"
    assert cards.emphasised("abcd", ["abc", "bcd"]) == "<b>abc</b>d", "overlapping parts do not nest"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("ok", "training")),
        ({"status": "succeeded"}, ("ok", "succeeded")),
        ({"status": "failed"}, ("fault", "failed")),
        ({"status": "needs_human"}, ("warn", "needs a person")),
        ({"attempts": [samples.attempt(1, state="suspect")]}, ("warn", "suspect")),
        ({"attempts": [samples.attempt(1)]}, ("ok", "restarting")),
        ({"desired": "cancel"}, ("off", "stopping")),
        ({"status": "new in a later version"}, ("off", "new in a later version")),
    ],
)
def test_a_status_is_a_word_and_a_glyph(changes: dict[str, Any], expected: tuple[str, str]) -> None:
    level, glyph, text = cards.status_words(samples.run_view(**changes))
    assert (level, text) == expected
    assert glyph


def test_the_why_card_tells_cause_action_and_cost() -> None:
    markup = cards.why_card(samples.RESTART, samples.RUN_ID)
    assert "<b>GPU 3 of sim-node-02 reported 1,893 uncorrectable memory errors</b>" in markup
    text = Tags(markup).text
    for part in ("2.2 s detect, decide", "4.0 s load checkpoint", "5.0 s 9 steps again", "INC-0001", "first step 89"):
        assert part in text
    assert "/incident?number=1" in Tags(markup).links


def test_the_phase_bar_is_true_to_scale() -> None:
    widths = [float(width) for width in re.findall(r"flex-grow:([\d.]+)", cards.phase_bar(samples.RESTART))]
    assert widths == [phase["seconds"] for phase in samples.RESTART["phases"]]


def test_a_restart_under_way_says_that_its_durations_are_not_known_yet() -> None:
    assert "follow when" in cards.phase_bar({"phases": []})
    partly = {"phases": [{"name": "detect", "seconds": 2.0, "color_role": "detect"}, {"name": "load", "seconds": None}]}
    assert cards.phase_bar(partly).count("flex-grow") == 1


def test_checkpoints_say_their_state_in_words_and_glyphs() -> None:
    rows = [
        samples.checkpoint(96, "tainted", note="suspicion window"),
        samples.checkpoint(88),
        samples.checkpoint(80, "complete"),
    ]
    tags = Tags(cards.checkpoint_table(rows, samples.NOW))
    for word in ("× tainted", "● verified", "! unverified", "suspicion window", "96"):
        assert word in tags.text
    assert tags.names.count("tr") == 4


def test_checkpoints_are_noted_and_the_notable_ones_are_shown_first() -> None:
    view = samples.run_view()
    rows = [samples.checkpoint(step, "tainted" if step == 96 else "validated") for step in range(8, 145, 8)]
    marked = cards.noted(rows, view["attempts"])
    notes = {row["step"]: row["note"] for row in marked}
    assert (notes[144], notes[88], notes[136]) == ("newest", "attempt 2 began here", "")
    shown = cards.worth_showing(marked, 5)
    assert [row["step"] for row in shown] == [144, 136, 128, 96, 88]
    assert cards.worth_showing(marked[:2], 5) == marked[:2]


def test_the_stage_bar_shows_progress_and_says_when_there_is_none() -> None:
    markup = cards.stage_bar(samples.run_view())
    assert "width:87.50%" in markup
    assert "step 140 of 160 · 87.5 %" in Tags(markup).text
    assert "no step yet, 160 planned" in Tags(cards.stage_bar(samples.new_run_view())).text
    two = Tags(cards.stage_bar(samples.run_view(stages=["pretrain", "sft"]))).text
    assert two.index("pretrain") < two.index("sft") and two.count("87.5 %") == 1


def test_differences_carry_their_sign_as_text() -> None:
    markup = cards.diff_block([(" ", "a"), ("-", "b"), ("+", "<b>")])
    assert 'class="tt-cut"><span>-</span>b' in markup
    assert 'class="tt-add"><span>+</span>&lt;b&gt;' in markup


@pytest.mark.parametrize("kind", ["incident", "run", "node", "log", "event"])
def test_links_quote_what_they_are_given(kind: str) -> None:
    address = cards.link(kind, '"><script>x&y=1', "r&1")
    assert not set(address) & set('"<>')
    assert "y=1" not in address.split("?", 1)[1].split("&")


@pytest.mark.parametrize("number", [7, "7", "INC-0007"])
def test_an_incident_has_one_name_and_one_address(number: object) -> None:
    assert cards.link("incident", number) == "/incident?number=7"
    assert cards.incident_label(7) == "INC-0007"


def test_hostile_text_stays_text_in_every_block() -> None:
    hostile = samples.HOSTILE
    row = {
        "sentence": hostile,
        "bold": [hostile],
        "phases": [{"name": hostile, "seconds": 1.0, "color_role": hostile}],
        "evidence": [{"kind": hostile, "id": hostile, "label": hostile, "sentence": hostile}],
        "incident": hostile,
    }
    blocks = [
        cards.why_card(row, hostile),
        cards.checkpoint_table([samples.checkpoint(8, hostile, note=hostile)], samples.NOW),
        cards.stage_bar(samples.run_view(stage=hostile)),
        cards.diff_block([("+", hostile), (hostile, hostile)]),
        cards.glyph_chip("ok", hostile, hostile),
    ]
    for block in blocks:
        assert "img" not in Tags(block).names
        assert hostile in Tags(block).text
