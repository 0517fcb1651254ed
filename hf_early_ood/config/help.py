"""The list of all settings, as ``--help`` prints it."""

from __future__ import annotations

import textwrap

from hf_early_ood.config.parsing import field_in_words, is_required, section_of
from hf_early_ood.config.schema import RunConfig, walk
from hf_early_ood.config.study import SECTION, StudySection


def describe(width: int = 100) -> str:
    """Every setting: dotted key, default, help and allowed values.

    Example:
        >>> "intervention.probe.every" in describe()
        True
    """
    settings = [*walk(RunConfig), *walk(StudySection, SECTION)]
    optional = tuple(f"{key}." for key, _, hint in settings if section_of(hint) is not None)
    paragraphs = []
    for key, field, hint in settings:
        if key == "training":
            key, words = "training.<field>", "see transformers.TrainingArguments"
        elif key == "study.arms":
            key, words = "study.arms.<name>", "any of the keys above"
        else:
            words = field_in_words(field, hint)
        if key.startswith(optional) and is_required(field):
            default = "required in this section"
        elif is_required(field):
            default = "required"
        elif field.default_factory is dict:
            default = "none"
        else:
            default = f"default: {_shown(field.default)}"
        text = f"{field.metadata['help']} [{words}]"
        body = textwrap.fill(text, width, initial_indent="      ", subsequent_indent="      ")
        head = textwrap.fill(f"--{key}  ({default})", width, initial_indent="  ", subsequent_indent="      ")
        paragraphs.append(f"{head}\n{body}")
    return "\n".join(paragraphs)


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value)
