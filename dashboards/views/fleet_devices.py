"""What the agent knows of a node's devices, a part at a time: memory and errors, links, ports, users, log, all metrics.

Why it exists: who holds a suspicious node wants one figure, and not a page for each; the parts share the drawer's
width. Everything is markup from the node's view; unknown is a dash.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dashboards import markup, theme, words

Row = Mapping[str, Any]
NUM = "tt-num"
THROTTLES = ("power", "heat", "HBM heat", "regulator heat", "processor hot")
LINES = 30


def _loud(value: object, text: str) -> str:
    """A count that should be zero stands out when it is not."""
    return f'<span class="tt-fault-words">{text}</span>' if value else text


def memory(node: Row) -> str:
    """Errors of each GPU's memory and how much of its page budget is used, and what held it down in the last minute."""
    heads = (("GPU", NUM), ("corr.", NUM), ("unc.", NUM), ("deferred", NUM), ("elsewhere", NUM), ("pages", NUM))
    rows = [
        [
            str(one["gpu"]),
            words.number(one.get("correctable")),
            _loud(one.get("uncorrectable"), words.number(one.get("uncorrectable"))),
            _loud(one.get("deferred"), words.number(one.get("deferred"))),
            _loud(one.get("elsewhere"), words.number(one.get("elsewhere"))),
            f"{words.number(one.get('bad_pages'))} of {words.number(one.get('may_retire'))}",
        ]
        for one in node.get("budgets") or ()
    ]
    held = [one for one in node.get("throttling") or () if any(one.get(why) for why in THROTTLES)]
    parts = [_scroll(markup.table(heads, rows))] if rows else [_nothing("No GPU has told of its memory.")]
    if held:
        head = (("GPU", NUM), *((why, NUM) for why in THROTTLES))
        body = [[str(one["gpu"]), *(_percent(one.get(why)) for why in THROTTLES)] for one in held]
        parts.append('<p class="tt-muted">held down, share of the last minute</p>' + _scroll(markup.table(head, body)))
    elif node.get("throttling"):
        parts.append('<p class="tt-muted">No GPU was held down in the last minute.</p>')
    return "".join(parts)


def _percent(value: object) -> str:
    return "–" if value is None else f"{float(str(value)):.0f} %"


def links(node: Row) -> str:
    """The XGMI matrix: GB/s from each GPU to each other over the last seconds; a link that is down is a cross."""
    found = node.get("links") or {}
    flow, up = found.get("gb_per_s") or [], found.get("up") or []
    if not flow:
        return _nothing("No GPU has told of its XGMI links.")
    most = max((value for row in flow for value in row if value is not None), default=0.0)
    heads = (("to", NUM), *((str(peer), NUM) for peer in range(len(flow[0]))))
    rows = []
    for gpu, row in enumerate(flow):
        cells = [_link(value, up[gpu][peer], peer == gpu, most) for peer, value in enumerate(row)]
        rows.append([f"<b>{gpu}</b>", *cells])
    table = markup.table(heads, rows, "tt-matrix")
    return f'{_scroll(table)}<p class="tt-faint">GB/s, read and written, over the last 15 s</p>'


def _link(value: float | None, is_up: bool | None, own: bool, most: float) -> str:
    if own:
        return '<span class="tt-faint">·</span>'
    if is_up is False:
        return '<span class="tt-fault-words">× down</span>'
    if value is None:
        return "–"
    slow = most > 1 and value < most / 2
    return _loud(slow, f"{value:.1f}")


def ports(node: Row) -> str:
    """A row a port; what went wrong on it since its driver was loaded."""
    heads = (
        ("port", ""),
        ("link", NUM),
        ("downs", NUM),
        ("retries", NUM),
        ("again", NUM),
        ("CNP", NUM),
        ("order", NUM),
    )
    rows = []
    for one in node.get("nics_detail") or ():
        link = (
            "–" if one.get("up") is None else f"{words.number(one.get('rate_gbps'))}" if one["up"] else _loud(1, "down")
        )
        counts = (_loud(one.get("retries"), words.number(one.get("retries"))),)
        rows.append(
            [
                theme.escape(str(one.get("name"))),
                link,
                _loud(one.get("carrier_changes"), words.number(one.get("carrier_changes"))),
                *counts,
                _share(one.get("sent_again"), one.get("packets")),
                words.compact(one.get("congestion")),
                words.compact(one.get("out_of_order")),
            ]
        )
    if not rows:
        return _nothing("No port has told anything.")
    note = "link in Gb/s; again: share of packets sent again; out of order is normal, since packets are sprayed"
    return _scroll(markup.table(heads, rows)) + f'<p class="tt-faint">{note}</p>'


def _share(part: object, whole: object) -> str:
    if part is None or not whole:
        return "–"
    return f"{100 * float(str(part)) / float(str(whole)):.3f} %"


def users(node: Row) -> str:
    """Who holds the GPUs open."""
    heads = (("GPU", NUM), ("process", ""), ("pod, run", ""), ("rank", NUM), ("HBM GiB", NUM))
    rows = [
        [
            str(one.get("gpu")),
            theme.escape(f"{one.get('command') or '?'} {one.get('pid') or ''}".rstrip()),
            theme.escape(" · ".join(str(one[name]) for name in ("pod", "run_id") if one.get(name)) or "–"),
            "–" if int(one.get("rank", -1)) < 0 else str(one["rank"]),
            words.number((one.get("vram_mib") or 0) / 1024, 1),
        ]
        for one in node.get("users") or ()
    ]
    return _scroll(markup.table(heads, rows)) if rows else _nothing("Nobody holds a GPU of this node.")


def log(node: Row) -> str:
    """The last lines of the kernel's log that speak of a device, newest last."""
    lines = [line for line in node.get("kernel") or () if line.get("text")][-LINES:]
    if not lines:
        return _nothing("The kernel has said nothing of a device.")
    rows = [
        f'<div><span class="tt-muted">{words.clock(line.get("at_s"))}</span> {theme.escape(str(line["text"]))}</div>'
        for line in lines
    ]
    return f'<div class="tt-console">{"".join(rows)}</div>'


def everything(node: Row) -> str:
    """Every metric of every device with its unit, and the age of the sample."""
    found: Sequence[Row] = node.get("metrics") or ()
    if not found:
        return _nothing("No sample yet.")
    parts = [
        f'<p class="tt-faint">a sample {words.age(node.get("age_s"))} old; a dash is a value that is not available</p>'
    ]
    for scope, title in (("gpu", "GPU"), ("nic", "NIC"), ("host", "host")):
        rows = [one for one in found if one["scope"] == scope]
        if not rows:
            continue
        count = len(rows[0]["values"])
        heads = ((title, ""), ("", ""), *((str(at) if count > 1 else "", NUM) for at in range(count)))
        body = [
            [theme.escape(str(one["name"])), theme.escape(str(one["unit"])), *(words.compact(v) for v in one["values"])]
            for one in rows
        ]
        parts.append(_scroll(markup.table(heads, body, "tt-metrics")))
    return "".join(parts)


def unlike(node: Row) -> str:
    """What the node is made of and most of its peers are not; empty if it is like them."""
    rows = [
        f"<p>{markup.glyph('warning')} {theme.escape(str(one['what']))} is <b>{theme.escape(str(one['own']))}</b>, "
        f"most of its peers have {theme.escape(str(one['usual']))}.</p>"
        for one in node.get("unlike") or ()
    ]
    return "".join(rows)


def blind(node: Row) -> str:
    """What the agent cannot read here."""
    parts = (node.get("facts") or {}).get("blind") or ()
    return "".join(f'<p class="tt-faint">? {theme.escape(str(part))}</p>' for part in parts)


def _scroll(table: str) -> str:
    return f'<div class="tt-scroll">{table}</div>'


def _nothing(sentence: str) -> str:
    return f'<p class="tt-muted">{theme.escape(sentence)}</p>'


PARTS: Mapping[str, Callable[[Row], str]] = {
    "Memory": memory,
    "Links": links,
    "Ports": ports,
    "Users": users,
    "Log": log,
    "All": everything,
}
