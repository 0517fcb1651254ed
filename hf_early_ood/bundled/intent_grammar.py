"""Texts drawn from the sentence templates of Home Assistant: a seeded random walk over the grammar of hassil.

A template such as ``(pause|hold) [my] timer [for {timer_minutes} minutes]`` stands for many texts. hassil can list them
all, in order; here each draw takes one alternative at every fork, so that few draws see all parts of a template.
Importing this module needs ``hassil``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hassil.expression import Alternative, Expression, Group, ListReference, Permutation, RuleReference, TextChunk
from hassil.parse_expression import parse_sentence

# A short list, so that texts do not differ in numbers alone more often than they must.
NUMBERS = (5, 10, 15, 20, 25, 30, 40, 50)

_LIST = re.compile(r"\{([^}:]+)")
_RULE = re.compile(r"<([^>]+)>")
# White space that means nothing in a language written without it: all but that between two Latin words.
_UNSPACED = re.compile(r"(?<![A-Za-z])\s+|\s+(?![A-Za-z])")


class DrawnText(NamedTuple):
    """One text, and where it comes from; ``domain`` is the kind of device of the template, if it names one."""

    text: str
    intent: str
    domain: str
    template: str


@dataclass
class IntentGrammar:
    """The templates of one language.

    Lists of names of the user's own rooms and devices (``area``, ``name``, ``floor``) are not part of the grammar, and
    wildcards stand for any text: a template that mentions one, at any depth, is left out.

    Args:
        language: Code of the language; part of the seed of every draw.
        content: What the file of the language holds: ``intents``, ``lists``, ``expansion_rules``, ``settings``.

    Example:
        >>> templates = ["(pause|hold) [my] timer", "pause {name}"]
        >>> content = {"intents": {"Pause": {"data": [{"sentences": templates}]}}, "lists": {}, "expansion_rules": {}}
        >>> drawn = IntentGrammar("en", content).draw("Pause", 20)
        >>> sorted({text.text for text in drawn})
        ['hold my timer', 'hold timer', 'pause my timer', 'pause timer']
    """

    language: str
    content: Mapping[str, Any]
    _parsed: dict[str, Expression] = field(default_factory=dict, repr=False)
    _known: dict[str, bool] = field(default_factory=dict, repr=False)

    def draw(self, intent: str, draws: int) -> list[DrawnText]:
        """Texts of one intent: the same for the same grammar, whatever else is drawn.

        Args:
            intent: Its name in the file of the language; one that is not there has no texts.
            draws: Draws a template. Fewer texts come out where a template stands for fewer.

        Returns:
            Distinct texts of each template, in the order of the file; two templates may give the same text.
        """
        drawn = []
        for block in self.content["intents"].get(intent, {"data": []})["data"]:
            domain = block.get("slots", {}).get("domain", "")
            for template in block["sentences"]:
                if self._is_complete(template):
                    rng = random.Random(f"{self.language}\n{intent}\n{template}")
                    texts = dict.fromkeys(self._text(template, rng) for _ in range(draws))
                    drawn += [DrawnText(text, intent, domain, template) for text in texts if text]
        return drawn

    def _is_complete(self, template: str) -> bool:
        """Whether all that a template mentions is there, at any depth."""
        if template not in self._known:
            self._known[template] = all(map(self._list_is_complete, _LIST.findall(template))) and all(
                rule in self.content["expansion_rules"] and self._is_complete(self.content["expansion_rules"][rule])
                for rule in _RULE.findall(template)
            )
        return self._known[template]

    def _list_is_complete(self, name: str) -> bool:
        content = self.content["lists"].get(name, {})
        return "range" in content or ("values" in content and all(map(self._is_complete, self._values(name))))

    def _values(self, name: str) -> list[str]:
        """Ways to say the values of a list: words, or numbers in digits."""
        content = self.content["lists"][name]
        if "range" not in content:
            return [value if isinstance(value, str) else value["in"] for value in content["values"]]
        span = range(content["range"]["from"], content["range"]["to"] + 1, content["range"].get("step", 1))
        return [str(number) for number in NUMBERS if number in span] or [str(span[len(span) // 2])]

    def _text(self, template: str, rng: random.Random) -> str:
        parts: list[str] = []
        self._walk(self._parse(template), rng, parts)
        text = "".join(parts)
        if self.content.get("settings", {}).get("ignore_whitespace"):
            text = _UNSPACED.sub("", text)
        return " ".join(text.split())

    def _parse(self, template: str) -> Expression:
        if template not in self._parsed:
            self._parsed[template] = parse_sentence(template).expression
        return self._parsed[template]

    def _walk(self, expression: Expression, rng: random.Random, parts: list[str]) -> None:
        """Add the pieces of one text, from left to right, to ``parts``."""
        if isinstance(expression, TextChunk):
            parts.append(expression.original_text)
        elif isinstance(expression, RuleReference):
            self._walk(self._parse(self.content["expansion_rules"][expression.rule_name]), rng, parts)
        elif isinstance(expression, ListReference):
            self._walk(self._parse(_one_of(self._values(expression.list_name), rng)), rng, parts)
        elif isinstance(expression, Alternative):  # an optional part is one with the empty text
            self._walk(_one_of(expression.items, rng), rng, parts)
        elif isinstance(expression, Group):
            items = expression.items
            if isinstance(expression, Permutation):
                items = sorted(items, key=lambda _: rng.random())
            for item in items:
                self._walk(item, rng, parts)


def _one_of(items: Sequence[Any], rng: random.Random) -> Any:
    # Of Python's generator only random() is promised to stay the same in later versions.
    return items[int(rng.random() * len(items))]
