"""Embeds bokeh: its script for inlining, and figures as plain data with identifiers that are the same in each run."""

from __future__ import annotations

from functools import cache
from typing import Any

from bokeh.embed import json_item
from bokeh.models.layouts import LayoutDOM
from bokeh.resources import Resources

_ID_KEYS = frozenset({"id", "root_id", "target_id"})


@cache
def bokeh_script() -> str:
    """Gives bokeh's own script, so that a page needs no network."""
    script = "\n".join(Resources(mode="inline", components=["bokeh"], log_level="error").js_raw)
    assert "</script" not in script.lower()
    return script


def figure_item(figure: LayoutDOM, prefix: str) -> dict[str, Any]:
    """Gives a figure as the plain data that `Bokeh.embed.embed_item` takes; same figure, same data.

    Args:
        figure: a figure or a layout of figures.
        prefix: begins its identifiers, so that several figures of one page differ.
    """
    return _renamed(json_item(figure), prefix, {})  # type: ignore[no-any-return]


def _renamed(value: Any, prefix: str, names: dict[str, str], key: str = "") -> Any:
    """Replaces bokeh's running numbers, which depend on all that was drawn before, by numbers from 0."""
    if isinstance(value, dict):
        return {name: _renamed(item, prefix, names, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, prefix, names) for item in value]
    if key in _ID_KEYS and isinstance(value, str):
        return names.setdefault(value, f"{prefix}{len(names)}")
    return value
