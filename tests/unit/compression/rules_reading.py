"""Reads the text of rules as a person would, and says what they answer."""

from __future__ import annotations

import re

import numpy as np

CONDITION = re.compile(r"(.+?) (<=|>) (\S+)")
TERM = re.compile(r"(?: ?([-+]) ?)?(?:(\d\S*) )?(x\[\d,\d\])")


def add_up(text: str, values: dict[str, np.float32]) -> float:
    """The sum that a condition is about, from left to right."""
    assert TERM.sub("", text) == "", text
    total = 0.0
    for sign, factor, name in TERM.findall(text):
        total += float(np.float32(f"{sign}{factor or 1}")) * float(values[name])
    return total


def holds(line: str, values: dict[str, np.float32]) -> bool:
    """Whether the conditions of one line do, as a person would check them."""
    text = line.split(" then ")[0].removeprefix("else ")
    if text == "always" or not text.startswith("if "):
        return True
    for condition in text.removeprefix("if ").split(" and "):
        match = CONDITION.fullmatch(condition)
        assert match, condition
        name, sign, number = match.groups()
        lower = add_up(name, values) <= np.float32(number)
        if lower != (sign == "<="):
            return False
    return True


def interpret(lines: list[str], values: dict[str, np.float32]) -> int:
    """The class that the text gives."""
    if not lines[0].startswith("each class begins at"):
        line = next(line for line in lines if holds(line, values))
        found = re.search(r"class (\d+), (\d+) %$", line)
        assert found, line
        return int(found[1])
    sums = [float(number) for number in lines[0].partition(": ")[2].split(", ")]
    target = -1
    for line in lines[1:-1]:
        if line.startswith("tree "):
            target = int(line.rstrip(":").split()[-1])
        elif holds(line, values):
            sums[target] += float(line.rsplit(" then ")[1])
    return int(np.argmax(sums))
