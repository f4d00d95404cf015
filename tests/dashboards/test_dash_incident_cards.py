"""The Incident pages' blocks: order, lanes, offsets, and text from kernels and people that stays text."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
import samples_runs as samples

from dashboards.views import incident_cards as cards


class Tags(HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("fault", "open, nobody on it")),
        ({"severity": "warning"}, ("warn", "open, nobody on it")),
        ({"state": "acked", "owner": "m.okafor"}, ("fault", "m.okafor is on it")),
        ({"state": "acked", "severity": "warning"}, ("warn", "someone is on it")),
        ({"state": "resolved"}, ("ok", "resolved")),
        ({"state": "merged"}, ("off", "merged")),
    ],
)
def test_an_incidents_state_says_who_is_on_it(changes: dict[str, Any], expected: tuple[str, str]) -> None:
    level, glyph, text = cards.state_words({**samples.INCIDENT, **changes})
    assert (level, text) == expected
    assert glyph


@pytest.mark.parametrize(
    ("incident", "text"),
    [
        ({"node": "n1", "gpu": 3}, "GPU 3 of n1"),
        ({"node": "n1", "gpu": 0}, "GPU 0 of n1"),
        ({"node": "n1", "gpu": None, "entity": "nic5"}, "NIC 5 of n1"),
        ({"node": "n1", "gpu": -1, "entity": "node"}, "n1"),
        ({"node": None, "run": "r1"}, "r1"),
        ({}, "fleet"),
    ],
)
def test_where_it_happened(incident: dict[str, Any], text: str) -> None:
    assert cards.place(incident) == text


def test_the_sentence_ends_with_what_is_left_for_the_reader() -> None:
    text = Tags(cards.sentence_block(samples.INCIDENT_VIEW["sentence"])).text
    assert text.endswith("Left for you: reset or replace the GPU.")
    assert "Left for you" not in cards.sentence_block({"lead": "It is over.", "rest": "", "left": ""})


def test_each_event_has_its_dot_in_one_lane_and_its_offset_from_the_fault() -> None:
    origin = cards.origin(samples.TIMELINE)
    assert origin == samples.FAULT_AT
    markup = cards.lanes(samples.TIMELINE, origin)
    rows = markup.split("tt-lane-row")[2:]
    assert len(rows) == len(samples.TIMELINE)
    dots = [["<i" in cell for cell in re.findall(r'<span class="tt-lane">(.*?)</span>', row)] for row in rows]
    assert [lane.index(True) for lane in dots] == [0, 1, 1, 2]
    assert all(lane.count(True) == 1 for lane in dots)
    times = re.findall(r'tt-when">([^<]*)<', markup)
    assert times == ["13:34:22.0", "+1.8 s", "+2.2 s", "+14 s"]


def test_an_event_without_words_is_not_drawn() -> None:
    assert cards.lanes([{"at_s": 1.0, "lane": "run", "sentence": "", "level": "info"}], 0.0).count("tt-lane-row") == 1


def test_quiet_neighbours_of_one_kind_are_one_row_and_loud_ones_stay() -> None:
    def event(at_s: float, kind: str, level: str = "info") -> dict[str, Any]:
        return {"at_s": at_s, "lane": "run", "kind": kind, "sentence": f"{kind} {at_s:.0f}", "level": level}

    quiet = [event(float(at), "checkpoint") for at in range(5)]
    rows = cards.folded([*quiet, event(9.0, "attempt"), event(10.0, "checkpoint"), event(11.0, "checkpoint")])
    assert [row["sentence"] for row in rows] == ["checkpoint 0", "attempt 9", "checkpoint 10", "checkpoint 11"]
    assert rows[0]["detail"] == "and 4 more until 00:00:04: checkpoint 4"
    assert len(cards.folded([event(float(at), "fault", "fault") for at in range(5)])) == 5


def test_a_page_does_not_link_to_itself() -> None:
    assert "/incident?" in cards.lanes(samples.TIMELINE, None, samples.RUN_ID)
    assert "/incident?" not in cards.lanes(samples.TIMELINE, None, samples.RUN_ID, "incident")


def test_offsets_become_clock_times_beyond_an_hour_and_now_has_none() -> None:
    assert cards.when(samples.FAULT_AT + 4000, samples.FAULT_AT) == "14:41:02"
    assert cards.when(None, samples.FAULT_AT) == "now"
    assert cards.when(samples.FAULT_AT, None) == "13:34:22"
    assert cards.origin([]) is None
    assert cards.origin([{"at_s": 5.0, "level": "ok"}, {"at_s": None, "level": "fault"}]) == 5.0


def test_the_list_has_the_open_and_the_worst_first() -> None:
    rows = [
        {**samples.INCIDENT, "number": 3, "label": "INC-0003", "state": "closed"},
        {**samples.INCIDENT, "number": 2, "label": "INC-0002", "severity": "warning"},
        {**samples.INCIDENT, "number": 1, "label": "INC-0001"},
    ]
    assert re.findall(r"INC-\d+", cards.incident_rows(rows)) == ["INC-0001", "INC-0002", "INC-0003"]


def test_kernel_errors_are_bold_and_the_address_is_not_said_twice() -> None:
    markup = cards.kernel_block(samples.INCIDENT_VIEW["kernel"])
    assert markup.count("0000:c5:00.0") == 1
    assert markup.count("<b>") == 1


def test_deliveries_say_who_was_told_and_who_was_not() -> None:
    text = Tags(cards.delivery_rows(samples.INCIDENT_VIEW["deliveries"], samples.NOW)).text
    for part in ("ops", "told at 13:34:25", "1 try", "pager", "waits", "2 tries", "connection refused"):
        assert part in text


def test_rules_state_what_they_do() -> None:
    text = Tags(cards.rule_rows(samples.RULES)).text
    for part in ("hbm_uncorrectable", "critical", "drain", "the HBM counter rose"):
        assert part in text


def test_hostile_text_stays_text_in_every_block() -> None:
    hostile = samples.HOSTILE
    event = {"at_s": 1.0, "lane": "rule", "sentence": hostile, "detail": hostile, "level": hostile}
    event["link"] = {"kind": "node", "id": hostile}
    incident = {
        **samples.INCIDENT,
        "title": hostile,
        "rule": hostile,
        "node": hostile,
        "run": hostile,
        "label": hostile,
    }
    blocks = [
        cards.lanes([event], 1.0, hostile),
        cards.sentence_block({"lead": hostile, "rest": hostile, "left": hostile}),
        cards.kernel_block([{"at_s": 1.0, "priority": 1, "text": hostile, "pci_address": hostile}]),
        cards.incident_rows([incident]),
        cards.rule_rows([{"name": hostile, "severity": hostile, "action": hostile, "sentence": hostile}]),
        cards.delivery_rows([{"channel": hostile, "state": hostile, "last_error": hostile}], samples.NOW),
    ]
    for block in blocks:
        assert "img" not in Tags(block).names
        assert hostile in Tags(block).text


def test_the_experts_that_lived_there_link_to_their_last_step_before_the_fault() -> None:
    radius = {"sentence": "Rank 1 <b>", "fullest": [{"layer": 23, "share": 0.31}], "steps": [1180, 1243]}
    block = cards.experts_block(radius, "run-1")
    assert "Rank 1 &lt;b&gt;" in block and "steps 1,180 to 1,243" in block
    assert 'href="/experts?run=run-1&amp;layer=23&amp;step=1243"' in block and "31.0 %" in block
