"""Every soft-label mode: what it is, where it comes from, what can be set, what it takes, learns and can. No torch.

Whoever needs to know a mode asks here: settings, training loop, report, command line, README and tests.
"""

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
    """Whether it keeps a (C, C) table of its own, whatever the number of labels: images only."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "section", self.section or self.name)

    def setting(self, name: str) -> Setting | None:
        """The setting of that name, None where the mode has none."""
        return next((setting for setting in self.settings if setting.name == name), None)


_HARD_WEIGHT = Setting("hard_weight", 0.5, "weight of the cross entropy with the true label")
_SOFT_WEIGHT = Setting("soft_weight", 0.5, "weight of the cross entropy with the soft labels")
_WEIGHTS = (_HARD_WEIGHT, _SOFT_WEIGHT)
_LEARNING = (
    *_WEIGHTS,
    Setting(
        "temperature", 2.0, "softens the auxiliary predictions that the label table learns from", at_least=None, above=0
    ),
    Setting("cap", 0.9, "confidence above which the auxiliary head pays", at_least=None, above=0, at_most=1),
    Setting("cap_weight", 100.0, "what it pays for each item; above 1/cap the cap binds"),
)
_PAPER = "Sun et al. 2017, Label Embedding Network, arXiv 1710.10393"

MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (  # in the order of tables and pictures; colours go by place, so new modes come last
        Mode("baseline", "cross entropy", "", "labelemb.losses.fixed:baseline"),
        Mode(
            "smoothing",
            "uniform label smoothing: a share epsilon of every target is spread over all labels",
            "Szegedy et al. 2016, Rethinking the Inception Architecture",
            "labelemb.losses.fixed:smoothing",
            (Setting("epsilon", 0.1, "the share that is spread", at_most=1),),
        ),
        Mode(
            "online-smoothing",
            "a label's soft row is the mean prediction of its correctly classified items in the epoch before",
            "Zhang et al. 2021, Delving Deep into Label Smoothing",
            "labelemb.losses.online_smoothing:OnlineLabelSmoothing",
            _WEIGHTS,
            is_fused=False,
            needs_all_rows=True,
        ),
        Mode(
            "tfkd",
            "teacher-free regularisation: within 5e-4 of label smoothing with epsilon 0.1 in every target entry",
            "Yuan et al. 2020, Revisiting Knowledge Distillation via Label Smoothing Regularization",
            "labelemb.losses.fixed:teacher_free",
        ),
        Mode(
            "emb",
            "label embedding: the network learns a soft label for each label, from an auxiliary head of its own",
            _PAPER,
            "labelemb.losses.label_embedding:LabelEmbeddingLoss",
            (
                *_LEARNING,
                Setting("rank", None, "rank of a low-rank label table; null for a dense one", int, 1, optional=True),
                Setting(
                    "soft_after",
                    0,
                    "optimiser updates before the soft labels join in; below 1 a fraction of the planned ones",
                    of_criterion=False,
                ),
            ),
            takes_features=True,
            has_table=True,
        ),
        Mode(
            "emb-start",
            "label embedding that goes on from a learned table (--table)",
            _PAPER,
            "labelemb.losses.label_embedding:LabelEmbeddingLoss",
            _LEARNING,
            section="emb",
            takes_features=True,
            takes_table=True,
            has_table=True,
        ),
        Mode(
            "emb-frozen",
            "label embedding with a learned table that stays as it is (--table)",
            _PAPER,
            "labelemb.losses.label_embedding:frozen_label_embedding",
            _WEIGHTS,
            section="emb",
            takes_features=True,
            takes_table=True,
            has_table=True,
        ),
    )
}
