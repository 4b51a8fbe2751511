"""Config: the frozen values of a run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from easydict import EasyDict


class Config(EasyDict):
    """Attribute dictionary that cannot be changed. Lists are tuples, sections are Configs. It copies and pickles.

    task: name of the task that the keys belong to; an attribute of the outermost Config, not a key.
    """

    def __init__(self, values: Mapping[str, Any], task: str = "") -> None:
        # EasyDict's constructor is skipped: it stores every value twice, through the setters that raise here.
        dict.__init__(self, {name: _frozen(value) for name, value in values.items()})
        object.__setattr__(self, "task", task)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no key {name!r} here{did_you_mean(name, self)}") from None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain dicts, lists, strings and numbers, for JSON and checkpoints. `config_from_dict` reads them."""
        return {name: _plain(value) for name, value in self.items()}

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("a Config is frozen: use replace(), which returns a changed copy")

    __setattr__ = __setitem__ = __delattr__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return Config, (dict(self), self.task)


def dataset_sections(cfg: Config) -> list[Config]:
    """Returns the mappings of DATASET: several where it is a list, the master data set first, else one."""
    return list(cfg.DATASET) if isinstance(cfg.DATASET, list | tuple) else [cfg.DATASET]


def did_you_mean(path: str, candidates: Iterable[str]) -> str:
    """Returns "; did you mean X?" for a candidate of the same name in another section, else of similar spelling."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    name = path.lower().rpartition(".")[2]
    same_name = [candidate for candidate in by_lower if candidate.rpartition(".")[2] == name]
    close = difflib.get_close_matches(path.lower(), same_name or by_lower, 1, 0.0 if same_name else 0.6)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def _frozen(value: Any) -> Any:
    if isinstance(value, Config):
        return value
    if isinstance(value, Mapping):
        return Config(value)
    return tuple(_frozen(entry) for entry in value) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value
