"""The colours of the product, once: each token as a pair for light and dark, as CSS and as a palette for charts.

Why it exists: pages, canvases and charts must not each know a hex code. Style sheets and canvases use `var(--tt-…)`,
which follow Streamlit's theme by themselves; ECharts needs plain values, so Python picks one side of each pair.
"""

from collections.abc import Mapping

# name: (light, dark). On dark the ends of the load scale get lighter: far from fair is far from the background.
TOKENS: Mapping[str, tuple[str, str]] = {
    "bg": ("#FCFCFB", "#0F1317"),
    "panel": ("#F3F4F4", "#171C22"),
    "raised": ("#FFFFFF", "#1D242B"),
    "rule": ("#E3E6E8", "#232A32"),
    "strong_rule": ("#C3CAD0", "#3A4550"),
    "text": ("#17202A", "#E3E8EC"),
    "muted": ("#51606E", "#9AA6B1"),
    "faint": ("#616D79", "#828E9A"),
    "link": ("#1B6AAE", "#7FBDF5"),
    "primary": ("#1B6AAE", "#2B78BC"),
    "off": ("#8E99A3", "#5C6772"),
    "ok": ("#2477B3", "#5AA9E6"),
    "ok_text": ("#17609E", "#7FBDF5"),
    "ok_soft": ("#DCEAF5", "#16283A"),
    "warn": ("#D98E04", "#EBB440"),
    "warn_text": ("#8A5A00", "#EBB440"),
    "warn_soft": ("#FBF0D9", "#2E2612"),
    "on_warn": ("#2B1D00", "#2E2612"),
    "fault": ("#D2481A", "#FF7D52"),
    "fault_text": ("#B23A0C", "#FF8E67"),
    "fault_soft": ("#FBE7DF", "#351C14"),
    "on_fault": ("#FFFFFF", "#2A0D02"),
    "training": ("#B3D1EA", "#28597F"),
    "idle": ("#EAF2F9", "#16222D"),
    "load": ("#A797D8", "#6F5FA8"),
    "hang": ("#F3C4B2", "#5E2E1E"),
    "dead": ("#17202A", "#000000"),
    "hatch": ("#B9C1C8", "#3A4550"),
    # log2(share x E) at -2, -1, -1/2, flat, +1/2, +1, +2
    "scale_m2": ("#4A2683", "#C5B6F4"),
    "scale_m1": ("#8E79BC", "#7C69B8"),
    "scale_mh": ("#C6BDDD", "#55488A"),
    "scale_0": ("#EDEEEC", "#1D242B"),
    "scale_ph": ("#F3C491", "#7C4E22"),
    "scale_p1": ("#DB8527", "#CC7722"),
    "scale_p2": ("#8F4204", "#FFC078"),
    # one measure, from little to much
    "seq_0": ("#EAF2F9", "#16222D"),
    "seq_1": ("#9DC3E2", "#28597F"),
    "seq_2": ("#2477B3", "#5AA9E6"),
    "seq_3": ("#12365A", "#DCEEFF"),
}


def palette(appearance: str) -> dict[str, str]:
    """Every token as a plain colour for "light" or "dark"; anything else reads as light."""
    side = 1 if appearance == "dark" else 0
    return {name: pair[side] for name, pair in TOKENS.items()}


def css(appearance: str) -> str:
    """The tokens as custom properties that follow the page's colour scheme, in shadow roots too.

    Dialogs, popovers and toasts stand outside of what Streamlit gives its scheme to; they follow the body's.
    """
    rows = "".join(
        f"--tt-{name.replace('_', '-')}: light-dark({light}, {dark});\n" for name, (light, dark) in TOKENS.items()
    )
    scheme = "dark" if appearance == "dark" else "light"
    return ":root {\n" + rows + "}\nbody { color-scheme: " + scheme + "; }\n"
