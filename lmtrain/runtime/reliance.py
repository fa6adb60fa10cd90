"""What a promise of lmtrain rests on in other libraries."""

from collections.abc import Mapping
from dataclasses import dataclass, field

REST = "..."
"""In a list of parameters: an override passes on, or ignores, whatever else it is given."""


@dataclass(frozen=True)
class Reliance:
    """A promise of lmtrain, and the names that it rests on."""

    broken: str
    """What would happen without them."""
    overridden: Mapping[str, str] = field(default_factory=dict)
    """Functions that lmtrain overrides or replaces -> the parameters that its own version takes."""
    called: Mapping[str, str] = field(default_factory=dict)
    """Functions that lmtrain calls -> the parameters that it passes."""
    attributes: tuple[str, ...] = ()
    """Attributes of modules, of classes and of their instances; an entry of a mapping is `mapping[key]`."""
