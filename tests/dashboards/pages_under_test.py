"""Open one page of the dashboard without a browser: the real page over the fake API, with a query as in the address."""

import json
from typing import Any

from streamlit.testing.v1 import AppTest


def _script(name: str) -> None:
    import importlib

    importlib.import_module(f"dashboards.views.{name}").page()


def open_page(name: str, /, **query: str) -> AppTest:
    """Run the page once with this query."""
    page = AppTest.from_function(_script, args=(name,), default_timeout=30)
    for key, value in query.items():
        page.query_params[key] = value
    return page.run()


def markup(page: AppTest) -> str:
    """Everything the page put out as markup, style sheets apart."""
    bodies = [str(block.proto.body) for block in page.get("html")]
    return "\n".join(body for body in bodies if not body.startswith("<style>"))


def shown(page: AppTest, kind: str) -> dict[str, Any]:
    """What the page tells its canvas component of this kind; the first one when there are several."""
    every = [json.loads(block.proto.json) for block in page.get("bidi_component") if block.proto.json]
    return next(told for told in every if told["kind"] == kind)


def labels(page: AppTest) -> dict[str, bool]:
    """Each button's label and whether it can be pressed."""
    return {button.label: not button.disabled for button in page.button}
