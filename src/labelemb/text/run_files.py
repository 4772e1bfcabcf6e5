"""What a text run leaves for later use: its vocabularies, the best network so far, and its way of scoring.

In the run folder: `corpus.json`, `source.vocabulary.json`, `target.vocabulary.json`, and under checkpoints
`best.json` (epoch, step, score, file) with the safetensors file that it names.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from labelemb.errors import InputError
from labelemb.files import read_json, write_atomically, write_json
from labelemb.run_folder import RunFolder
from labelemb.settings.config import TextSettings
from labelemb.text.corpus.corpus import SIDES, Corpus
from labelemb.text.corpus.vocab import Vocabulary
from labelemb.text.scores import ROUGE_SIGNATURE, bleu, rouge
from labelemb.text.translate import Network, make_network
from labelemb.training.checkpoint import load_newest, must_fit


class BestNetwork:
    """The weights of the epoch with the highest development score so far, on disk; a resumed run finds them again.

    Args:
        folder: the run's checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def record(self) -> dict[str, Any] | None:
        """What best.json holds: epoch, step, score, file; None before the first evaluation.

        Raises:
            InputError: names the file, which is damaged.
        """
        path = self._folder / "best.json"
        if not path.is_file():
            return None
        record = read_json(path)
        kinds = {"epoch": int, "step": int, "score": int | float, "file": str}
        whole = all(isinstance(record.get(key), kind) for key, kind in kinds.items())
        if not whole or Path(record["file"]).name != record["file"]:
            raise InputError(f"{path} is damaged: expected epoch, step, score and the name of a file beside it")
        return record

    def offer(self, network: nn.Module, epoch: int, step: int, score: float) -> None:
        """Keep `network` if its score is the highest; an epoch that is done again replaces its own."""
        record = self.record
        if record is not None and score <= record["score"] and epoch != record["epoch"]:
            return
        name = f"best-{step:08d}.safetensors"
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
        write_atomically(self._folder / name, save(tensors))
        write_json(self._folder / "best.json", {"epoch": epoch, "step": step, "score": score, "file": name})
        for old in self._folder.glob("best-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self) -> dict[str, Tensor]:
        """The network's state.

        Raises:
            InputError: nothing was kept yet, or it or best.json is damaged.
        """
        record = self.record
        if record is None:
            raise InputError(f"{self._folder}: no best network yet; a run keeps one after its first epoch")
        try:
            return load((self._folder / record["file"]).read_bytes())
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self._folder / record['file']} is damaged: {error}") from None


def check_vocabularies(folder: RunFolder, corpus: Corpus) -> None:
    """Raise InputError where the run was started with other vocabularies than the corpus has."""
    path = folder.path / "corpus.json"
    if path.is_file() and read_json(path) != _described(corpus):
        raise InputError(
            f"{folder.path} was started with other vocabularies than {corpus.folder}: choose another --output"
        )


def write_vocabularies(folder: RunFolder, corpus: Corpus) -> None:
    """Keep what turns text into the network's ids in the run folder.

    Raises:
        InputError: the run was started with other vocabularies.
    """
    check_vocabularies(folder, corpus)
    for side, vocabulary in zip(SIDES, (corpus.source_vocabulary, corpus.target_vocabulary), strict=True):
        vocabulary.save(folder.path / f"{side}.vocabulary.json")
    write_json(folder.path / "corpus.json", _described(corpus))


def _described(corpus: Corpus) -> dict[str, Any]:
    """What must be the same for the network's ids to mean the same."""
    return {key: corpus.metadata[key] for key in ("unit", "lower", "share", "vocabularies")}


def load_vocabularies(folder: RunFolder) -> tuple[Vocabulary, Vocabulary, bool]:
    """The source's and the target's vocabulary, and whether they share one embedding.

    Raises:
        InputError: they are missing, damaged, or others than the run was trained with.
    """
    path = folder.path / "corpus.json"
    if not path.is_file():
        raise InputError(f"{folder.path}: no {path.name}; expected the folder of a text run")
    described = read_json(path)
    try:
        sums = {side: described["vocabularies"][side]["sha256"] for side in SIDES}
        share = bool(described["share"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: it does not say the sums of both vocabularies: {error}") from None
    vocabularies = []
    for side in SIDES:
        vocabulary = Vocabulary.load(folder.path / f"{side}.vocabulary.json")
        if vocabulary.fingerprint != sums[side]:
            raise InputError(
                f"{folder.path}: {side}.vocabulary.json is not the vocabulary that the run was trained with"
            )
        vocabularies.append(vocabulary)
    return vocabularies[0], vocabularies[1], share


def load_trained_network(
    folder: RunFolder, settings: TextSettings, checkpoint: str, sizes: tuple[int, int], *, shared: bool
) -> Network:
    """The network of a run in evaluation mode, on the CPU.

    Args:
        folder: the run's.
        settings: the run's.
        checkpoint: `best` by development score, or `last`.
        sizes: of the source's and the target's vocabulary.
        shared: whether they share one embedding.

    Raises:
        InputError: there is no such checkpoint, or it has another vocabulary.
    """
    if checkpoint == "best":
        state = BestNetwork(folder.checkpoints).load()
    else:
        newest = load_newest(folder.checkpoints)
        if newest is None:
            raise InputError(f"{folder.checkpoints}: no checkpoint yet")
        with must_fit(folder.checkpoints):
            module = newest["module"].items()
        state = {key.removeprefix("network."): value for key, value in module if key.startswith("network.")}
    network = make_network(settings.model, *sizes, shared=shared)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"{folder.path}: the {checkpoint} checkpoint does not fit this run's settings and vocabularies of "
            f"{sizes[0]:,} and {sizes[1]:,}: {str(error).splitlines()[-1].strip()}"
        ) from None
    return network.eval()


def score_lines(
    settings: TextSettings, outputs: Sequence[str], references: Sequence[str]
) -> tuple[dict[str, float], str]:
    """The scores of outputs (N,) against raw references (N,) as the recipe says, 0 to 100, and their signature."""
    if settings.metric == "rougeL":
        return rouge(outputs, references), ROUGE_SIGNATURE
    score = bleu(outputs, references, lowercase=settings.score.lowercase, tokenize=settings.score.tokenize)
    return {"bleu": score.value}, score.signature
