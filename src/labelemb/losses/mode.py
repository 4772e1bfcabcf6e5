"""What a soft-label mode says of itself; labelemb.losses.catalogue has them all. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One setting of a mode, with its range. Its default is that of the criterion's constructor, which a test holds."""

    name: str
    default: float | None
    sentence: str
    kind: type[float] | type[int] = float
    at_least: float | None = 0
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    optional: bool = False
    of_criterion: bool = True
    """False: it is the training loop's, not the constructor's."""


@dataclass(frozen=True)
class Mode:
    """One way to make soft labels."""

    name: str
    sentence: str
    """What the network is trained with, on one line."""
    source: str
    """Where it was published, or who it is from."""
    constructor: str
    """`module:function` of the criterion: (num_classes, **settings), with num_features first if it takes features."""
    settings: tuple[Setting, ...] = ()
    section: str = ""
    """The recipe's section that its settings stand in; its own name where nothing else is said."""
    takes_features: bool = False
    takes_table: bool = False
    """Whether it needs a learned label table (--table)."""
    has_table: bool = False
    """Whether a run leaves a label table."""
    is_fused: bool = True
    """Whether it has a form for large label sets."""
    needs_all_rows: bool = False
    """Whether it keeps a (C, C) table of its own, whatever the number of labels: not for sequences."""
    takes_index: bool = False
    """Whether it keeps something of each training example: calls take `index`, the constructor num_examples and
    num_epochs after num_classes."""
    spared_by: tuple[str, ...] = ()
    """The settings any of which, where given, makes do with less than that table."""
    formula: str = ""
    """The loss of one item, y the true label and p the prediction, with {setting} where one stands: see `described`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "section", self.section or self.name)

    def setting(self, name: str) -> Setting | None:
        """The setting of that name, None where the mode has none."""
        return next((setting for setting in self.settings if setting.name == name), None)

    def keeps_all_rows(self, settings: Mapping[str, float | None]) -> bool:
        """Whether it keeps a (C, C) table of its own with these settings."""
        return self.needs_all_rows and all(settings.get(name) is None for name in self.spared_by)
