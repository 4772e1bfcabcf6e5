"""Every setting of a run: its type, its range, its default and a sentence. No default lives anywhere else.

A recipe (labelemb.settings.recipe) is a YAML file that names a task and sets what differs from the defaults here;
`key=value` on the command line sets one more. The result is one frozen object, which the run folder keeps as
config.yaml.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, create_model

from labelemb.losses.catalogue import MODES, Mode
from labelemb.settings.data import ImageDataSettings, SentenceDataSettings, TableDataSettings, TextDataSettings
from labelemb.settings.section import Count, DeviceName, FolderName, Fraction, Name, NotNegative, Positive, Section
from labelemb.settings.variants import parse_variant


def _known_mode(name: str) -> str:
    if name not in MODES:
        raise ValueError(f"one of {', '.join(MODES)}")
    return name


def _known_variant(text: str) -> str:
    parse_variant(text)
    return text


ModeName = Annotated[str, AfterValidator(_known_mode)]
VariantText = Annotated[str, AfterValidator(_known_variant)]


def _section(mode: Mode) -> type[BaseModel]:
    """The settings of a mode, from the catalogue, as a section of the recipe."""
    fields: dict[str, Any] = {}
    for setting in mode.settings:
        limits = Field(
            ge=setting.at_least,
            gt=setting.above,
            le=setting.at_most,
            lt=setting.below,
            allow_inf_nan=False if setting.kind is float else None,
        )
        kind: Any = Annotated[setting.kind, limits]
        kind = kind | None if setting.optional else kind
        fields[setting.name] = (kind, Field(setting.default, description=setting.sentence))
    name = "".join(part.title() for part in mode.name.split("-"))
    return create_model(f"{name}Settings", __base__=Section, __module__=__name__, **fields)


SECTIONS = {mode.section: _section(MODES[mode.section]) for mode in MODES.values() if MODES[mode.section].settings}

globals().update({kind.__name__: kind for kind in SECTIONS.values()})  # a worker process unpickles them by name

if TYPE_CHECKING:

    class _ModeSections(Section): ...

else:  # a field a section, so that a mode's settings are read, checked and explained like all others
    _ModeSections = create_model(
        "_ModeSections", __base__=Section, **{name: (kind, kind()) for name, kind in SECTIONS.items()}
    )


class OptimizerSettings(Section):
    name: Literal["adam", "adamw", "sgd"] = Field("adam", description="trains the network; the criterion always Adam")
    lr: Positive = Field(1e-3, description="learning rate of the network")
    weight_decay: NotNegative = Field(0.0, description="of the network; the criterion has none")
    momentum: Fraction = Field(0.9, description="of sgd (with Nesterov's step)")
    criterion_lr: Positive = Field(1e-3, description="learning rate of the criterion's own parameters")
    table_lr: Positive | None = Field(None, description="learning rate of the label table; null for criterion_lr")
    clip: Positive | None = Field(None, description="largest norm of the network's gradient; null for no clip")


class ScheduleSettings(Section):
    name: Literal["constant", "step", "cosine"] = Field("constant", description="how the learning rates change")
    every: Count = Field(40, description="step: epochs between two cuts")
    factor: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="step: what a cut multiplies by")
    warmup: NotNegative = Field(0, description="epochs of linear warm-up")


MOST_RUNS = 10_000  # of a mode: the settings of all are made before the first one begins


class CompareSettings(Section):
    modes: tuple[VariantText, ...] = Field(
        ("baseline", "emb"), description="the modes compared; NAME=MODE:SETTING=VALUE is a mode with other settings"
    )
    runs: Annotated[int, Field(ge=1, le=MOST_RUNS)] = Field(5, description="seeds 0 to runs-1 of each mode")


class PaperResult(Section):
    """What the paper reports for one mode, rates in percent."""

    mean: float
    std: float | None = None
    seconds_per_epoch: float | None = None


class ReportSettings(Section):
    labels: tuple[Name, ...] | None = Field(None, description="labels on the heat map; null chooses them")
    words: tuple[Name, ...] | None = Field(None, description="words in the table of similar labels; null chooses them")
    paper: dict[ModeName, PaperResult] | None = Field(None, description="the paper's figures, shown beside ours")


class ClassifierSettings(Section):
    name: str = Field("mlp", description="mlp, mnist-cnn, resnet8, resnet18, or module:function, timm:NAME (--model)")
    hidden: tuple[Count, ...] | None = Field(None, description="mlp: units of the hidden layers")
    width: Count | None = Field(None, description="resnet8, resnet18: channels of the stem")


class SentenceModelSettings(Section):
    name: str = Field("ngrams", description="ngrams, or transformers:NAME, a folder or what is in its cache (--model)")
    buckets: Count = Field(2**16, description="ngrams: vectors that the words and parts of words share, by their hash")
    width: Count = Field(64, description="ngrams: of these vectors")
    hidden: tuple[Count, ...] = Field((128,), description="ngrams: units of the hidden layers on their mean")


class AugmentSettings(Section):
    crop: Annotated[int, Field(ge=0)] = Field(0, description="random crop after padding each side by this many pixels")
    flip: bool = Field(False, description="random horizontal flip")
    normalize: bool = Field(False, description="by the training images' mean and deviation of each channel")
    mixup: NotNegative = Field(0.0, description="alpha of mixup; 0 for none")
    cutmix: NotNegative = Field(0.0, description="alpha of CutMix; 0 for none")


class RunSettings(_ModeSections):
    """What every task has, and a section of settings for each mode that has any."""

    recipe: FolderName = Field(description="name of the recipe")
    description: str = Field("", description="one line on the recipe")
    mode: ModeName = Field("emb", description="the soft labels trained with")
    variant: FolderName | None = Field(None, description="the mode's name in a comparison; null for its own")
    tuning: FolderName | None = Field(None, description="a run of compare --tune: its point; never sees the test set")
    table: Path | None = Field(None, description="a learned label table, for modes that begin with one (--table)")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of initial network, batch order, augmentation")
    epochs: Count = Field(30, description="passes over the training set")
    batch_size: Count = Field(64, description="items, or pairs of sentences, a step, over all processes")
    accumulate: Count = Field(1, description="parts that a batch is computed in, one after another, to save memory")
    device: DeviceName = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the network's matrix products")
    compile: bool | None = Field(None, description="torch.compile; null: on a GPU only")
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    compare: CompareSettings = CompareSettings()
    report: ReportSettings = ReportSettings()

    @property
    def name(self) -> str:
        """What the run is called beside others: its variant, else its mode."""
        return self.variant or self.mode

    @property
    def loss(self) -> dict[str, Any]:
        """The settings that the run's mode has, by name."""
        section = getattr(self, MODES[self.mode].section, None)
        return {setting.name: getattr(section, setting.name) for setting in MODES[self.mode].settings}

    @property
    def criterion_options(self) -> dict[str, Any]:
        """Those of them that the criterion is made with."""
        kept = {setting.name for setting in MODES[self.mode].settings if setting.of_criterion}
        return {name: value for name, value in self.loss.items() if name in kept}


class LabelingSettings(RunSettings):
    """What every kind of data to classify has: one label for each item, and a test error."""

    metric: Literal["test_error"] = "test_error"
    data: ImageDataSettings | TableDataSettings | SentenceDataSettings
    model: ClassifierSettings | SentenceModelSettings
    class_weight: Literal["balanced"] | None = Field(
        None, description="balanced: items weigh the inverse of their label's frequency, on average 1"
    )


class ClassifySettings(LabelingSettings):
    """Images."""

    task: Literal["classify"] = "classify"
    data: ImageDataSettings
    model: ClassifierSettings = ClassifierSettings()
    augment: AugmentSettings = AugmentSettings()


class TableSettings(LabelingSettings):
    """Numeric columns."""

    task: Literal["tables"] = "tables"
    data: TableDataSettings
    model: ClassifierSettings = ClassifierSettings()


class SentenceSettings(LabelingSettings):
    """Texts, each with one label."""

    task: Literal["text-classes"] = "text-classes"
    data: SentenceDataSettings
    model: SentenceModelSettings = SentenceModelSettings()


class TextModelSettings(Section):
    name: Literal["lstm", "transformer"] = Field("lstm", description="the network")
    hidden: Count = Field(512, description="units of embeddings and layers")
    layers: Count = Field(2, description="of encoder and decoder each")
    dropout: Fraction = Field(0.2, description="between layers and before the output layer")
    query_tanh: bool = Field(False, description="lstm: tanh on the attention's query")
    heads: Count = Field(4, description="transformer: attention heads")


LONGEST = 10_000  # of outputs and beams: memory is taken for all of it
_Most = Annotated[int, Field(ge=1, le=LONGEST)]


class DecodeSettings(Section):
    beam: _Most = Field(10, description="hypotheses kept")
    max_length: _Most = Field(50, description="words at most")
    length_penalty: NotNegative = Field(0.0, description="divide the score by length to this power")
    replace_unknown: bool = Field(True, description="replace an unknown word by the most attended source word")
    beam_epochs: Annotated[int, Field(ge=0)] = Field(3, description="last epochs scored by beam search too")


class ScoreSettings(Section):
    lowercase: bool = Field(False, description="case-insensitive BLEU")
    tokenize: str = Field("13a", description="sacreBLEU's tokenizer; `none` scores the tokens as they stand")


class TextSettings(RunSettings):
    task: Literal["text"] = "text"
    metric: Literal["bleu", "rougeL"] = "bleu"
    data: TextDataSettings
    model: TextModelSettings = TextModelSettings()
    batch_tokens: Count | None = Field(None, description="tokens of either side a step, in place of batch_size pairs")
    compile: bool | None = Field(False, description="torch.compile; every batch has another shape, so rarely of use")
    decode: DecodeSettings = DecodeSettings()
    score: ScoreSettings = ScoreSettings()


Settings = ClassifySettings | TableSettings | SentenceSettings | TextSettings


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, of the modes' those of the run's: what config.yaml holds."""
    values = settings.model_dump(mode="json", exclude=set(SECTIONS))
    return values | ({MODES[settings.mode].section: settings.loss} if settings.loss else {})


def describe(settings: Settings) -> Iterator[tuple[str, Any, str]]:
    """Every key of a recipe with its value and its sentence, in the order of this file."""
    yield from _describe(settings, "")


def _describe(settings: BaseModel, prefix: str) -> Iterator[tuple[str, Any, str]]:
    fields = type(settings).model_fields
    for name in sorted(fields, key=lambda name: name in SECTIONS):  # those of the modes last
        field = fields[name]
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _describe(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, field.description or ""
