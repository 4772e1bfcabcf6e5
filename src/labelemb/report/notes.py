"""What stands under the table of modes: what its columns are, and which runs are not in it."""

from collections.abc import Sequence
from typing import Any

from labelemb.report.pairs import best_smoothing, marks, smoothing_groups
from labelemb.report.summary import Results, Run
from labelemb.report.tuning import tuning_notes
from labelemb.run_folder import TIMING_CONDITIONS


def paper_figures(results: Results) -> dict[str, dict[str, float | None]]:
    """mode -> mean, std, seconds_per_epoch."""
    return (results.all_runs[0].config.get("report") or {}).get("paper") or {}


def notes(results: Results) -> list[str]:
    """The sentences under the table."""
    metric = results.metric
    lines = [f"{metric.title}: {metric.final}; mean over runs, in brackets the standard deviation (n - 1)."]
    if results.baseline is not None and len(results.groups) > 1:
        lines.append(
            f"{metric.better.capitalize()}: {metric.difference}, in {metric.points}, and relative; "
            "95 % interval (Student's t) of the mean, paired by seed."
        )
        lines += _pair_notes(results, results.baseline)
    lines += _mark_notes(results) + _smoothing_notes(results)
    if results.target is not None:
        lines.append(
            f"To baseline: first epoch at which the mean over runs is as good as the baseline's mean {metric.target} "
            f"({metric.scale * results.target:.2f}{metric.unit}), and that many times the seconds an epoch."
        )
    lines += _scaling_notes(results)
    lines += tuning_notes(results)
    lines += timing_notes(results)
    lines += sorted(
        {f"Signature: {run.evaluation['signature']}" for run in results.all_runs if run.evaluation.get("signature")}
    )
    if paper_figures(results):
        lines.append("Paper: the figures of arXiv 1710.10393, on other machines.")
    return lines + left_out(results)


def left_out(results: Results) -> list[str]:
    """Which runs are not in the table."""
    notes = []
    for run in results.unfinished:
        last = int(run.rows[-1]["epoch"]) if run.rows else 0
        notes.append(
            f"Left out, unfinished: {run.name}, seed {run.seed} (epoch {last} of {run.config.get('epochs', '?')})."
        )
    for run in results.damaged:
        notes.append(
            f"Left out, damaged: {run.name}, seed {run.seed} ({run.damage}); bring the file back, or remove the run's "
            "folder and train again."
        )
    return notes


def timing_notes(results: Results) -> list[str]:
    """A warning where seconds an epoch cannot be compared: the runs were not done under like conditions."""
    unlike = []
    for key in TIMING_CONDITIONS:
        values = {value for runs in results.groups.values() for run in runs for value in _conditions(run, key)}
        if len(values) > 1:
            unlike.append(f"{key} {' and '.join(sorted(map(str, values)))}")
    if not unlike:
        return []
    return [f"Seconds an epoch come from runs under unlike conditions and do not compare: {'; '.join(unlike)}."]


def _conditions(run: Run, key: str) -> set[Any]:
    """The values of one condition over all parts of a run; none for a run from before it was recorded."""
    return {*run.environment.get("earlier", {}).get(key, []), run.environment.get(key)} - {None}


def _pair_notes(results: Results, baseline: str) -> list[str]:
    others = [name for name in results.groups if name != baseline]
    return _shared_seeds(results, baseline, others) + _unlike_epochs(results)


def _shared_seeds(results: Results, reference: str, others: Sequence[str]) -> list[str]:
    lines = []
    for name in others:
        pairs = len(results.finals(name).keys() & results.finals(reference).keys())
        if pairs < max(len(results.groups[name]), len(results.groups[reference])):
            seeds = "1 seed" if pairs == 1 else f"{pairs} seeds"
            lines.append(f"{name} and {reference} share {seeds}: only these are compared.")
    return lines


def _unlike_epochs(results: Results) -> list[str]:
    epochs = {name: sorted({str(run.config.get("epochs")) for run in runs}) for name, runs in results.groups.items()}
    if len({tuple(each) for each in epochs.values()}) < 2:
        return []
    return ["Epochs differ: " + ", ".join(f"{name} {'/'.join(each)}" for name, each in epochs.items()) + "."]


def _mark_notes(results: Results) -> list[str]:
    if not marks(results):
        return []
    return [
        "Best: the best mean of the table, on the seeds that each mode has; = cannot be told apart from it (the paired "
        "95 % interval of the difference includes 0, not corrected for several comparisons); ? fewer than 2 seeds "
        "shared with it."
    ]


def _smoothing_notes(results: Results) -> list[str]:
    reference, groups = best_smoothing(results), smoothing_groups(results)
    if reference is None or len(results.groups) < 2:
        return []
    which = f"the best mean of {', '.join(groups)}, chosen on these runs" if len(groups) > 1 else "paired by seed"
    points = results.metric.points
    line = f"Vs smoothing: against {reference} ({which}), in {points}, positive is better; 95 % interval (Student's t)."
    others = [name for name in results.groups if name not in (reference, results.baseline)]  # that pair is told already
    return [line, *_shared_seeds(results, reference, others)]


def _scaling_notes(results: Results) -> list[str]:
    """What the columns of calibrated probabilities are, or why there are none."""
    runs = [run for each in results.groups.values() for run in each]
    measured = [run for run in runs if run.measured("test_nll") is not None]
    if results.metric.is_test_score or not measured:
        return []
    without = [run for run in measured if run.measured("scaled.nll") is None]
    lines = []
    if len(without) < len(measured):
        lines.append(
            "Scaled: the probabilities of the logits over one temperature a run, fitted by NLL on its held-out "
            "training images; no predicted label changes. NLL and ECE % without that word: as trained."
        )
    if any(not _holds_out(run) for run in without):
        lines.append("NLL and ECE % are not scaled: no held-out data (data.validation).")
    if any(_holds_out(run) for run in without):
        lines.append("NLL and ECE % are not scaled: runs without a temperature, from before one was fitted.")
    return lines


def _holds_out(run: Run) -> bool:
    return bool((run.config.get("data") or {}).get("validation"))
