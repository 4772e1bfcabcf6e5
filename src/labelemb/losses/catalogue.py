"""Every soft-label mode: what it is, where it comes from, what can be set, what it takes, learns and can. No torch.

Whoever needs to know a mode asks here: settings, training loop, report, command line, README and tests.
"""

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
    """Whether it keeps a (C, C) table of its own, whatever the number of labels: images only."""
    formula: str = ""
    """The loss of one item, y the true label and p the prediction, with {setting} where one stands: see `described`."""

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
        "temperature",
        2.0,
        "softens the auxiliary predictions that the label table learns from; null fits it to the number of labels",
        at_least=None,
        above=0,
        optional=True,
    ),
    Setting("cap", 0.9, "confidence above which the auxiliary head pays", at_least=None, above=0, at_most=1),
    Setting("cap_weight", 100.0, "what it pays for each item; above 1/cap the cap binds"),
)
_LEARNED = (
    "{hard_weight}*H(y, p) + {soft_weight}*H(e_y, p) + H(y, p') + {cap_weight}*relu(p'_y - {cap})"
    " + H(p'^(1/{temperature}), e_y)"
)
_DECOUPLED = (
    Setting("epsilon", 0.1, "the share of the target that is not the label's", below=1),
    Setting("shape_weight", 1.0, "weight of the cross entropy over the other labels with the learned row"),
)
_PAPER = "Sun et al. 2017, Label Embedding Network, arXiv 1710.10393"

MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (  # in the order of tables and pictures; colours go by place, so new modes come last
        Mode("baseline", "cross entropy", "", "labelemb.losses.fixed:baseline", formula="H(y, p)"),
        Mode(
            "smoothing",
            "uniform label smoothing: a share epsilon of every target is spread over all labels",
            "Szegedy et al. 2016, Rethinking the Inception Architecture",
            "labelemb.losses.fixed:smoothing",
            (Setting("epsilon", 0.1, "the share that is spread", at_most=1),),
            formula="H((1 - {epsilon})*y + {epsilon}/C, p)",
        ),
        Mode(
            "online-smoothing",
            "a label's soft row is the mean prediction of its correctly classified items in the epoch before",
            "Zhang et al. 2021, Delving Deep into Label Smoothing",
            "labelemb.losses.online_smoothing:OnlineLabelSmoothing",
            _WEIGHTS,
            is_fused=False,
            needs_all_rows=True,
            formula="{hard_weight}*H(y, p) + {soft_weight}*H(row_y, p)",
        ),
        Mode(
            "tfkd",
            "teacher-free regularisation: within 5e-4 of label smoothing with epsilon 0.1 in every target entry",
            "Yuan et al. 2020, Revisiting Knowledge Distillation via Label Smoothing Regularization",
            "labelemb.losses.fixed:teacher_free",
            formula="0.9*H(y, p) + 0.1*KL(t_y, p)",
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
                    0.0,
                    "optimiser updates before the soft labels join in; below 1 a fraction of the planned ones",
                    of_criterion=False,
                ),
            ),
            takes_features=True,
            has_table=True,
            formula=_LEARNED,
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
            formula=_LEARNED,
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
            formula="{hard_weight}*H(y, p) + {soft_weight}*H(e_y, p)",
        ),
        Mode(
            "decoupled",
            "learned soft labels in two statements: how sure (epsilon), and what else (rows counted from the network)",
            "this project, 2026: docs/method.md, section 11",
            "labelemb.losses.decoupled:DecoupledLabelEmbeddingLoss",
            (*_DECOUPLED, Setting("momentum", 0.99, "of the counted rows", below=1)),
            has_table=True,
            is_fused=False,
            needs_all_rows=True,
            formula="BCE(1 - {epsilon}, p_y) + {shape_weight}*H(r_y, p~), r counted with momentum {momentum}",
        ),
        Mode(
            "decoupled-start",
            "the decoupled form that goes on from a learned table (--table)",
            "this project, 2026: docs/method.md, section 11",
            "labelemb.losses.decoupled:DecoupledLabelEmbeddingLoss",
            (*_DECOUPLED, Setting("momentum", 0.99, "of the counted rows", below=1)),
            section="decoupled",
            takes_table=True,
            has_table=True,
            is_fused=False,
            needs_all_rows=True,
            formula="BCE(1 - {epsilon}, p_y) + {shape_weight}*H(r_y, p~), r counted with momentum {momentum}",
        ),
        Mode(
            "decoupled-frozen",
            "the decoupled form with a learned table that stays as it is (--table)",
            "this project, 2026: docs/method.md, section 11",
            "labelemb.losses.decoupled:frozen_decoupled",
            _DECOUPLED,
            section="decoupled",
            takes_table=True,
            has_table=True,
            is_fused=False,
            needs_all_rows=True,
            formula="BCE(1 - {epsilon}, p_y) + {shape_weight}*H(r_y, p~), r given",
        ),
        Mode(
            "maxsup",
            "cross entropy, and the largest logit pays for its distance from the mean, more as training goes on",
            "Zhou et al. 2025, MaxSup: Overcoming Representation Collapse in Label Smoothing",
            "labelemb.losses.maxsup:MaxSupLoss",
            (
                Setting("start", 0.1, "weight of that distance when training begins"),
                Setting("end", 0.2, "its weight when training ends; linear in between"),
            ),
            is_fused=False,
            formula="H(y, p) + a*(max z - mean z), a from {start} to {end}",
        ),
        Mode(
            "zipf",
            "cross entropy, and soft labels over the other labels that fall off with their rank in the prediction",
            "Liang et al. 2022, Efficient One Pass Self-distillation with Zipf's Label Smoothing",
            "labelemb.losses.zipf:ZipfLoss",
            (Setting("soft_weight", 0.1, "weight of the cross entropy with the soft labels over the others"),),
            is_fused=False,
            formula="H(y, p) + {soft_weight}*H(w, p~)",
        ),
        Mode(
            "lspp",
            "Label Smoothing++: a share epsilon of every target is spread over the other labels as a table learns it",
            "Chhabra et al. 2024, Label Smoothing++: Enhanced Label Regularization for Training Neural Networks",
            "labelemb.losses.label_smoothing_plus_plus:LabelSmoothingPlusPlusLoss",
            (Setting("epsilon", 0.1, "the share that is spread", at_least=None, above=0, below=1),),
            is_fused=False,
            needs_all_rows=True,
            formula="H(q, p) + H(p, q), q = (1 - {epsilon})*y + {epsilon}*softmax c_y",
        ),
        Mode(
            "uskd",
            "self-distillation: cross entropy, more where the network is sure, and soft labels by rank in two heads",
            "Yang et al. 2023, From Knowledge Distillation to Self-Knowledge Distillation",
            "labelemb.losses.uskd:UniversalSelfDistillationLoss",
            (
                Setting("target_weight", 0.1, "weight of the true label's own soft target"),
                Setting("shape_weight", 0.1, "weight of the cross entropy with the soft labels over the others"),
                Setting("aux_weight", 0.1, "weight of the auxiliary head's own loss"),
            ),
            takes_features=True,
            is_fused=False,
            formula="(1 + {target_weight}*T)*H(y, p) + {shape_weight}*H(w, p~) + {aux_weight}*H(0.9*y + 0.1/C, p')",
        ),
        Mode(
            "confidence-penalty",
            "cross entropy less a share of the prediction's entropy",
            "Pereyra et al. 2017, Regularizing Neural Networks by Penalizing Confident Output Distributions",
            "labelemb.losses.confidence_penalty:ConfidencePenaltyLoss",
            (Setting("soft_weight", 0.1, "what the entropy is multiplied by"),),
            is_fused=False,
            formula="H(y, p) - {soft_weight}*H(p)",
        ),
        Mode(
            "poly",
            "cross entropy and the probability that the true label lacks",
            "Leng et al. 2022, PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions",
            "labelemb.losses.poly:PolyLoss",
            (Setting("soft_weight", 1.0, "weight of that probability"),),
            is_fused=False,
            formula="H(y, p) + {soft_weight}*(1 - p_y)",
        ),
    )
}


def described(mode: str, settings: Mapping[str, float | None]) -> str:
    """The formula in force on one line, with its numbers: "zipf: H(y, p) + 0.1*H(w, p~)".

    H is cross entropy (of one argument: entropy), z the logits, p~ the prediction over the labels other than y, p' the
    auxiliary head's, e_y, row_y, t_y and w the soft labels; the mode's criterion says how they come about.

    Args:
        mode: a key of `MODES`.
        settings: the mode's own, by name; those left out have their defaults.

    Raises:
        ValueError: there is no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    values = {setting.name: setting.default for setting in MODES[mode].settings} | dict(settings)
    shown = {name: "null" if value is None else f"{value:g}" for name, value in values.items()}
    return f"{mode}: {MODES[mode].formula.format(**shown)}"
