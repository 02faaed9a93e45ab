"""Charts as tests read them: the shapes and texts of an SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree


def parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{markup}</div>")


def words(drawn: ElementTree.Element) -> list[str]:
    """Texts in the picture."""
    return [text.text for text in drawn.iter("text")]


def titles(drawn: ElementTree.Element) -> list[str]:
    """What a browser says below the pointer."""
    return [title.text for title in drawn.iter("title")]


def numbers(shape: ElementTree.Element, *names: str) -> tuple[float, ...]:
    """Attributes of a shape; one that is left out is 0."""
    return tuple(float(shape.get(name, "0")) for name in names)


def paths(drawn: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """The points of each series' line."""
    found = []
    for group in drawn.iter("g"):
        if group.get("class") == "series" and (path := group.find("path")) is not None:
            places = [float(place) for place in re.findall(r"-?\d+(?:\.\d+)?", path.get("d"))]
            found.append(list(zip(places[::2], places[1::2], strict=True)))
    return found
