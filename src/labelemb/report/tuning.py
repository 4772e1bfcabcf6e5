"""What equal tuning chose and what it cost: a sentence for each mode, from the tuning.json beside its runs."""

from typing import Any

from labelemb.errors import InputError
from labelemb.files import read_json
from labelemb.report.summary import Results, Run
from labelemb.run_folder import TUNING_FILE
from labelemb.settings.which_run import flatten

_SCORED_ON_THE_SAME = " There is no test text: the runs are scored on the text that chose, which flatters them."


def tuning_notes(results: Results) -> list[str]:
    """A sentence for each mode that was tuned.

    Raises:
        InputError: a tuning.json is damaged.
    """
    return [note for name, runs in results.groups.items() if (note := _note(name, runs[0]))]


def _note(name: str, run: Run) -> str:
    """Empty where the run was not tuned, or tuning.json tells of other settings than it was trained with."""
    path = run.folder.path.parent.parent / TUNING_FILE
    content = read_json(path)
    try:
        record = content.get("modes", {}).get(name)
        if record is None:
            return ""
        settings = flatten(run.config)
        if any(settings.get(key) != value for key, value in record["chosen"].items()):
            return ""
        return _sentence(name, record) + (_SCORED_ON_THE_SAME if run.evaluation.get("scored_on") == "valid" else "")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {name}: {error!r}") from None


def _sentence(name: str, record: dict[str, Any]) -> str:
    if not record["points"]:
        return f"Tuned: {name}: the grid had nothing to choose for it."
    chosen = ", ".join(f"{key}={value}" for key, value in record["chosen"].items())
    epoch, points, seconds = record["epoch"], len(record["points"]), float(record["seconds"])
    cost = f"{record['runs']} runs of {points} points, {seconds:,.0f} seconds of training"
    edge = ", ".join(record["at_edge"])
    beyond = f"; at the edge of the grid: {edge}" if edge else ""
    return f"Tuned: {name}: {chosen} by the mean {record['judged_by']} of the {epoch} epoch ({cost}){beyond}."
