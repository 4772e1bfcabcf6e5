"""A criterion's files beside those of a saved model: its label table, as `table.save` writes it, and the rest."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from labelemb.losses.soft_label import SoftLabelLoss
from labelemb.losses.soft_rows import SoftRows, read_rows

TABLE_FILE = "label_table.safetensors"
REST_FILE = "soft_labels.safetensors"
_TABLE = "table."
_CHECKPOINT = re.compile(r"checkpoint-\d+")  # the Trainer's folders, which it resumes from with all of the state dict


class SaveBeside:
    """A model's `save_pretrained`: the criterion goes into files of its own, which `from_pretrained` does not look at.

    Args:
        model: with its criterion.
        name: the criterion's in the model.
    """

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        self.model = model
        self.name = name

    def __call__(
        self, save_directory: str | Path, *args: Any, state_dict: Mapping[str, Tensor] | None = None, **options: Any
    ) -> Any:
        """What PreTrainedModel.save_pretrained does; Trainer checkpoints keep the criterion in the model's file too."""
        folder = Path(save_directory)
        state = dict(self.model.state_dict() if state_dict is None else state_dict)
        if not _CHECKPOINT.fullmatch(folder.name):
            state = {name: value for name, value in state.items() if not name.startswith(f"{self.name}.")}
        saved = type(self.model).save_pretrained(self.model, save_directory, *args, state_dict=state, **options)
        if options.get("is_main_process", True):
            self._save_criterion(folder)
        return saved

    def _save_criterion(self, folder: Path) -> None:
        from safetensors.torch import save_file

        criterion = self.model.get_submodule(self.name)
        table = getattr(criterion, "table", None)
        if isinstance(table, SoftRows):
            if table.label_names is None:
                table.label_names = _label_names(self.model, table.num_classes)
            table.save(folder / TABLE_FILE)
        rest = {name: value for name, value in criterion.state_dict().items() if not name.startswith(_TABLE)}
        if rest:
            values = {name: value.detach().cpu().contiguous() for name, value in rest.items()}
            save_file(values, folder / REST_FILE, metadata={"criterion": json.dumps(type(criterion).__name__)})


def restore(criterion: SoftLabelLoss, folder: Path) -> bool:
    """Load into a criterion what was saved in a folder; False where nothing is there.

    Raises:
        ValueError: the files are damaged or of a criterion of another kind or size.
    """
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    if (folder / TABLE_FILE).is_file():
        state |= {_TABLE + name: value for name, value in read_rows(folder / TABLE_FILE)[0].items()}
    if (folder / REST_FILE).is_file():
        state |= load_file(folder / REST_FILE)
    if not state:
        return False
    try:
        criterion.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{folder} has soft labels of another criterion: {error}") from error
    return True


def _label_names(model: PreTrainedModel, num_classes: int) -> list[str] | None:
    names = getattr(model.config, "id2label", None) or {}
    found = [names.get(index) for index in range(num_classes)]
    return None if model.can_generate() or None in found else [str(name) for name in found]
