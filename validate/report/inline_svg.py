"""Prepares matplotlib's SVG for a page: colours become CSS variables, ids unique, and the style sheet is removed.

Called by `validate.report.plots`.
"""

import re
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

SVG, HREF = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"


def inline(document: str, key: str, variables: Mapping[str, str], title: str, description: str) -> str:
    """The document as one <svg>, with `title` and `description` for screen readers; `variables` by colour.

    Removed: metadata with a date, the style sheet (it would apply to the whole page), sizes, fonts, unused ids.
    """
    given = ElementTree.fromstring(document)
    root = Element(
        "svg",
        {
            "xmlns": SVG,
            "viewBox": given.attrib["viewBox"],
            "class": "plot",
            "role": "img",
            "aria-labelledby": f"{key}-title {key}-description",
            "style": "stroke-linejoin: round; font-family: var(--plot-font, system-ui, sans-serif)",
        },
    )
    for tag, text in (("title", title), ("desc", description)):
        ElementTree.SubElement(root, tag, id=f"{key}-{'title' if tag == 'title' else 'description'}").text = text
    root.extend(child for child in given if _local(child.tag) in ("g", "defs"))
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", document))
    for element in list(root.iter())[3:]:
        _adopt(element, key, used, variables)
    return ElementTree.tostring(root, "unicode")


def _adopt(element: Element, key: str, used: set[str], variables: Mapping[str, str]) -> None:
    element.tag, element.tail = _local(element.tag), None
    element.text = element.text if element.tag == "text" else None
    for style in [child for child in element if _local(child.tag) == "style"]:
        element.remove(style)
    if element.get("id") not in used:
        element.attrib.pop("id", None)
    if HREF in element.attrib:
        element.set("href", element.attrib.pop(HREF))
    values = {name: _value(name, value, key, variables) for name, value in element.attrib.items()}
    element.attrib.clear()
    element.attrib.update({name: value for name, value in values.items() if value})


def _value(name: str, value: str, key: str, variables: Mapping[str, str]) -> str:
    if name == "id":
        return f"{key}-{value}"
    value = re.sub(r"^#|(?<=url\()#", f"#{key}-", value) if name in ("href", "clip-path") else value
    if name == "style":
        value = re.sub("font-family: [^;]*; ", "", value)
        return re.sub("#[0-9a-f]{6}", lambda colour: variables.get(colour[0], colour[0]), value)
    if name == "transform":
        value = re.sub(r"rotate\(-?0 [^)]*\)", "", value)
    value = re.sub(r"-?\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", value)
    return re.sub(r"\s+", " ", value).strip()


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
