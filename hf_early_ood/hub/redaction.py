"""What a results file says about the machine it was made on, taken out of what is published."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from hf_early_ood.atomic import plain
from hf_early_ood.config.checks import is_local
from hf_early_ood.results import RunRecord

# The beginning of an absolute path, of one in the home folder, or of one that leads upward.
_START = r"(?:file://)?(?:~[\w.-]*[/\\]|/(?=[^\s/'\"])|[A-Za-z]:[\\/]|\\\\(?=\w)|(?:\.\.[/\\])+)"
# The folder of a user, whose name may hold blanks.
_HOME = r"(?:/home/|/Users/|[A-Za-z]:[\\/]Users[\\/])[^/\\\n'\"]+"
# A path inside a text; not the tail of a relative path or of an address.
_PATH = re.compile(rf"""(?<![\w./~\\-])(?:(?:file://)?{_HOME}[/\\]|{_START})[^\s'"\[\]{{}},;]*""")
# In quotes, also of one argument of a command, all of it is the path, blanks included.
_QUOTED = re.compile(rf"""(?P<quote>['"])(?P<key>(?:[\w.-]+=)?)(?P<path>{_START}[^'"\n]*)(?P=quote)""")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}\b")
TOKEN_SHOWN = "hf_..."


class Redactor:
    """Replaces paths of the machine by their last part, and tokens by dots; says what was replaced.

    Args:
        records: Of the runs whose paths are known: base models and data that were files there.

    Example:
        >>> redactor = Redactor()
        >>> redactor.text("run /home/jane/x.yaml --data ood/movie --url https://a.b/c")
        'run x.yaml --data ood/movie --url https://a.b/c'
        >>> redactor.notes()
        ['/home/jane/x.yaml is given as x.yaml']
    """

    def __init__(self, *records: RunRecord) -> None:
        self._known = {path for record in records for path in _local_names(record)}
        self._replaced: dict[str, str] = {}
        self.base_model = next((record.model.name for record in records if record.model is not None), None)

    def text(self, text: str) -> str:
        """A text without such paths and tokens."""
        for path in sorted(self._known, key=len, reverse=True):
            # Not inside of a longer path or word: "data" is no part of "data.train".
            found = re.compile(rf"(?<![\w./~\\-]){re.escape(path)}(?![\w./~\\-])")
            text = found.sub(lambda match: self._replace(match[0]), text)
        text = _QUOTED.sub(lambda found: "{quote}{key}{path}{quote}".format(**self._path_replaced(found)), text)
        text = _PATH.sub(lambda match: self._replace(match[0]), text)
        if _TOKEN.search(text):
            self._replaced["a token"] = TOKEN_SHOWN
            text = _TOKEN.sub(TOKEN_SHOWN, text)
        return text

    def name(self, name: str) -> str:
        """A name of a model or of data: of a local one, the last part."""
        return self._replace(name) if name in self._known or is_absolute(name) else self.text(name)

    def value(self, value: Any) -> Any:
        """The same for every text in nested values, in types that JSON has."""
        return self._walk(plain(value))

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.name(value)
        if isinstance(value, list):
            return [self._walk(item) for item in value]
        if isinstance(value, dict):
            return {key: self._walk(item) for key, item in value.items()}
        return value

    def _path_replaced(self, found: re.Match[str]) -> dict[str, str]:
        return {**found.groupdict(), "path": self._replace(found["path"])}

    def _replace(self, path: str) -> str:
        shown = last_part(path)
        if shown != path:
            self._replaced[path] = shown
        return shown

    def notes(self) -> list[str]:
        """What was replaced by what, for the person who publishes; it is not to be published."""
        return [f"{path} is given as {shown}" for path, shown in self._replaced.items()]

    @property
    def shown(self) -> list[str]:
        """What stands in the place of what was replaced."""
        return sorted(set(self._replaced.values()))


def is_absolute(text: str) -> bool:
    r"""Whether a whole text is an absolute path, or one in the home folder, blanks allowed.

    Example:
        >>> is_absolute("/data/my set.csv"), is_absolute(r"C:\x\y.csv"), is_absolute("ood/movie"), is_absolute("/")
        (True, True, False, False)
    """
    if "\n" in text or len(text) < 2:
        return False
    return text.startswith(("/", "~/", "file://")) or bool(PureWindowsPath(text).drive and PureWindowsPath(text).root)


def last_part(path: str) -> str:
    r"""Name of a file or folder; not of the folder of a user, which is the name of a person.

    Example:
        >>> last_part("~/models/mine/"), last_part("C:\\data\\x.csv"), last_part("x.csv"), last_part("..")
        ('mine', 'x.csv', 'x.csv', 'local')
        >>> last_part("/home/jane")
        'local'
    """
    if re.fullmatch(rf"(?:file://)?{_HOME}[/\\]?|~[\w.-]*[/\\]?", path):
        return "local"
    name = (PureWindowsPath(path) if "\\" in path else PurePosixPath(path)).name
    return name if name not in ("", ".", "..") else "local"


def _local_names(record: RunRecord) -> Iterator[str]:
    """Names of the base model and of data that are files of the machine, and other paths of the configuration."""
    model = record.model
    if model is not None and model.name and (is_local(model.name) if model.is_local is None else model.is_local):
        yield model.name
    for split, source in sources(record.config).items():
        name, noted = source.get("source"), record.data.get(split)
        if name and (noted.is_local if noted is not None and noted.is_local is not None else is_local(name)):
            yield name
    schedule, output_dir = (record.config.get("intervention") or {}).get("schedule"), record.config.get("output_dir")
    if schedule:
        yield schedule
    if output_dir and is_absolute(output_dir):
        yield output_dir


def sources(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Split -> where it came from, of the nested keys of a run; what is missing is left out."""
    data = config.get("data") or {}
    own = {split: data[split] for split in ("train", "id_validation", "id_test") if data.get(split)}
    return own | {f"ood/{name}": split for name, split in (data.get("ood") or {}).items()}
