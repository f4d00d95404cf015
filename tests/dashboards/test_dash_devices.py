"""The parts of a node's drawer: unknown is a dash, what should be zero and is not stands out, text is escaped."""

from __future__ import annotations

from typing import Any

import pytest

from dashboards import words
from dashboards.views import fleet_devices as parts

PORT = {
    "name": "ionic_3",
    "up": True,
    "rate_gbps": 400,
    "carrier_changes": 0,
    "retries": 0,
    "sent_again": 30,
    "packets": 1e6,
    "congestion": 5,
    "out_of_order": 80_000,
}
NODE: dict[str, Any] = {
    "age_s": 0.4,
    "budgets": [
        {
            "gpu": 3,
            "correctable": 12,
            "uncorrectable": 4,
            "deferred": 0,
            "elsewhere": 0,
            "bad_pages": 64,
            "may_retire": 128,
        },
        {"gpu": 4, "correctable": None, "uncorrectable": None, "deferred": None, "bad_pages": None, "may_retire": 128},
    ],
    "throttling": [
        {"gpu": 3, "power": 0.0, "heat": 12.4, "HBM heat": None, "regulator heat": 0.0, "processor hot": 0.0}
    ],
    "links": {"gb_per_s": [[None, 47.2, 10.0], [47.0, None, None]], "up": [[None, True, True], [True, None, False]]},
    "nics_detail": [PORT],
    "users": [
        {
            "gpu": 3,
            "pid": 41,
            "command": "<python>",
            "pod": "train/zaya-0",
            "run_id": "run-1",
            "rank": 3,
            "vram_mib": 2048,
        }
    ],
    "kernel": [{"at_s": 1.0, "text": "amdgpu 0000:65:00.0: <b>GPU reset</b>"}],
    "metrics": [
        {"scope": "gpu", "name": "power_w", "unit": "W", "help": "", "values": [690.0, None]},
        {"scope": "host", "name": "load_1m", "unit": "", "help": "", "values": [2.5]},
    ],
    "unlike": [{"what": "driver", "own": "6.14", "usual": "6.16"}],
    "facts": {"blind": ["the kernel log cannot be read"]},
}


def test_errors_and_page_budgets_and_what_held_a_gpu_down() -> None:
    text = parts.memory(NODE)
    assert '<span class="tt-fault-words">4</span>' in text and "64 of 128" in text and "– of 128" in text
    assert "12 %" in text and "processor hot" in text
    quiet = parts.memory({**NODE, "throttling": [{"gpu": 0, "power": 0.0}]})
    assert "No GPU was held down" in quiet


def test_the_link_matrix_shows_slow_lost_and_unknown_links() -> None:
    text = parts.links(NODE)
    assert "47.2" in text and "× down" in text
    assert '<span class="tt-fault-words">10.0</span>' in text, "less than half of the fastest"


def test_ports_users_log_and_every_metric() -> None:
    assert "0.003 %" in parts.ports(NODE) and "80.0k" in parts.ports(NODE).replace("80k", "80.0k")
    down = parts.ports({"nics_detail": [{**PORT, "up": False, "retries": 2}]})
    assert "tt-fault-words" in down and "down" in down
    assert "&lt;python&gt; 41" in parts.users(NODE) and "train/zaya-0 · run-1" in parts.users(NODE)
    assert "&lt;b&gt;GPU reset" in parts.log(NODE)
    text = parts.everything(NODE)
    assert "power_w" in text and "690" in text and "–" in text and "load_1m" in text


def test_what_is_unlike_its_peers_and_what_cannot_be_read_is_said() -> None:
    assert "driver is <b>6.14</b>" in parts.unlike(NODE) and "kernel log cannot be read" in parts.blind(NODE)
    assert parts.unlike({}) == parts.blind({}) == ""


@pytest.mark.parametrize("part", parts.PARTS)
def test_a_part_of_which_nothing_is_known_says_so(part: str) -> None:
    assert "tt-muted" in parts.PARTS[part]({})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.44, "0.4"),
        (690, "690"),
        (9999, "9999"),
        (12_345, "12.3k"),
        (4.1e9, "4.1G"),
        (-3, "-3"),
    ],
)
def test_a_reading_of_any_size_is_short(value: float | None, text: str) -> None:
    assert words.compact(value) == text
