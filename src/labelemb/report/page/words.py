"""The result in words, for a reader who does not know the method: what was compared, and what came out."""

from collections.abc import Iterator
from typing import NamedTuple

from labelemb.losses.catalogue import MODES, described
from labelemb.report import stats
from labelemb.report.pairs import BEST, LEVEL, UNKNOWN, best_smoothing, marks
from labelemb.report.summary import Results, Run

PAPER = "https://arxiv.org/abs/1710.10393"
FEW_SEEDS = 5
MAX_TOLD = 4  # modes with a paragraph of their own
PRICES = (("test_nll", "NLL", 1.0, "", 3), ("test_ece", "calibration error", 100.0, " %", 2))


class Compared(NamedTuple):
    """One name of the comparison, explained."""

    name: str
    sentence: str
    source: str
    link: str
    formula: str


class Told(NamedTuple):
    """What came out for one name: a heading, and sentences."""

    name: str
    sentences: list[str]


def compared(results: Results) -> list[Compared]:
    """One entry for each name, in the order of the table."""
    first = {run.name: run for run in reversed(results.all_runs)}
    return [_explained(name, first[name]) for name in results.names]


def _explained(name: str, run: Run) -> Compared:
    mode = MODES.get(run.mode)
    if mode is None:
        return Compared(name, f"{run.mode}, a mode that this version does not know", "", "", "")
    of_variant = "" if name == run.mode else f"{run.mode} with settings of its own: "
    link = PAPER if "1710.10393" in mode.source else ""
    return Compared(name, of_variant + mode.sentence, mode.source, link, _formula(run))


def _formula(run: Run) -> str:
    given = run.config.get(MODES[run.mode].section)
    settings = given if isinstance(given, dict) else {}
    known = {each.name for each in MODES[run.mode].settings}
    try:
        text = described(run.mode, {key: value for key, value in settings.items() if key in known})
    except (TypeError, ValueError):  # settings of a later version
        return ""
    return text.partition(": ")[2]


def standing(results: Results) -> list[str]:
    """What keeps this page from being the whole comparison; empty where nothing does."""
    lines = []
    if not results.groups:
        lines.append("No run has finished yet, so there is no result: what is below will change.")
    elif results.unfinished or results.damaged:
        missing = len(results.unfinished) + len(results.damaged)
        lines.append(f"Not all runs are in the result: {missing} of {len(results.all_runs)} are missing.")
    lines += [_progress(run) for run in results.unfinished]
    lines += [f"{run.name}, seed {run.seed}, is damaged: {run.damage}." for run in results.damaged]
    return lines


def _progress(run: Run) -> str:
    last = int(run.rows[-1]["epoch"]) if run.rows else 0
    where = f"epoch {last} of {run.config.get('epochs', '?')}"
    if run.has_ended:
        return f"{run.name}, seed {run.seed}, ended at {where} without a result: its numbers are not finite."
    return f"{run.name}, seed {run.seed}, has not ended: under way or stopped at {where}."


def outcome(results: Results) -> list[Told]:
    """The best first, then the modes that learn their soft labels, then plain cross entropy."""
    found = marks(results)
    if not results.groups:
        return []
    if not found:
        return [Told(name, [_level(results, name), *_lonely(results, name)]) for name in results.groups]
    best = next(name for name, mark in found.items() if mark == BEST)
    learned = [name for name in results.names_by_table if _has_table(results, name) and name != best]
    told = [best, *learned][:MAX_TOLD]
    return [Told(name, [*_place(results, name, found), *_versus(results, name)]) for name in told]


def headline(results: Results) -> str:
    """The result in one sentence; empty while there is none."""
    found, metric = marks(results), results.metric
    best = next((name for name, mark in found.items() if mark == BEST), None)
    means = {name: stats.mean(list(results.finals(name).values())) for name in results.groups}
    if best is None or means[best] is None:
        return ""
    title = metric.title.removesuffix(" %")
    against = results.baseline if best != results.baseline else best_smoothing(results)
    reference = means.get(against) if against else None
    called = "plain cross entropy" if against == results.baseline else "label smoothing"
    beside = "" if reference is None else f", against {_shown(results, reference)} for {called} ({against})"
    superlative = "highest" if metric.higher_is_better else "lowest"
    return f"{best} has the {superlative} {title}: {_shown(results, means[best] or 0.0)}{beside}."


def _lonely(results: Results, name: str) -> Iterator[str]:
    yield "There is nothing to hold it against: no other mode has finished runs."
    if len(results.groups[name]) == 1:
        yield "One run says nothing of how much the result depends on chance."


def _level(results: Results, name: str) -> str:
    finals = list(results.finals(name).values())
    metric, mean = results.metric, stats.mean(finals)
    assert mean is not None
    title = metric.title.removesuffix(" %")
    if len(finals) == 1:
        return f"{_capital(title)} {_shown(results, mean)}, one run."
    spread = f"{_shown(results, min(finals))} to {_shown(results, max(finals))}"
    return f"{_capital(title)} {_shown(results, mean)} on average over {len(finals)} runs ({spread})."


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _shown(results: Results, value: float) -> str:
    return f"{results.metric.scale * value:.2f}{results.metric.unit}"


def _place(results: Results, name: str, found: dict[str, str]) -> Iterator[str]:
    yield _level(results, name)
    if found[name] == BEST:
        level = [other for other, mark in found.items() if mark == LEVEL]
        unknown = [other for other, mark in found.items() if mark == UNKNOWN]
        yield "The best mean of the comparison" + (
            f"; these runs cannot tell it apart from {_listed(level)}." if level else "."
        )
        if unknown:
            yield f"Too few shared seeds to tell it from {_listed(unknown)}."
    elif found[name] == LEVEL:
        yield "These runs cannot tell it apart from the best."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _versus(results: Results, name: str) -> Iterator[str]:
    references = [(results.baseline, "plain cross entropy"), (best_smoothing(results), "label smoothing")]
    for reference, called in references:
        if reference not in (None, name):
            yield _against(results, name, str(reference), f"{called} ({reference})")
    if results.baseline not in (None, name):
        yield from _price(results, name, str(results.baseline))


def _against(results: Results, name: str, reference: str, called: str) -> str:
    """By how much better or worse, and how sure that is."""
    finals, metric = results.finals(reference), results.metric
    difference = stats.paired_difference(results.finals(name), finals)
    if difference.mean is None:
        return f"No seed is shared with {called}: not compared."
    points = metric.scale * abs(difference.mean)
    better = (difference.mean > 0) == metric.higher_is_better and difference.mean != 0
    direction = "better" if better else "worse" if points else "different"
    mean = stats.mean(list(finals.values()))
    size = f" ({points / (metric.scale * mean):.0%} of it)" if mean else ""
    opening = f"Against {called}, {_shown(results, mean or 0.0)}"
    return f"{opening}: {points:.2f} {metric.points}{size} {direction}; {_sure(difference, metric.scale)}."


def _sure(difference: stats.Difference, scale: float) -> str:
    if difference.low is None or difference.high is None or difference.mean is None:
        return "one shared seed, so it may be chance"
    sign = 1 if difference.mean >= 0 else -1
    low, high = sorted((sign * scale * difference.low, sign * scale * difference.high))
    few = f", from {difference.num_pairs} seeds only" if difference.num_pairs < FEW_SEEDS else ""
    if low > 0:
        return f"more than chance: the 95 % interval, {low:.2f} to {high:.2f}, leaves out 0{few}"
    return f"it may be chance: the 95 % interval, {low:.2f} to {high:.2f}, holds 0{few}"


def _price(results: Results, name: str, baseline: str) -> Iterator[str]:
    """What its probabilities are worth beside the baseline's; lower is better in both."""
    parts = []
    for column, title, scale, unit, digits in PRICES:
        pair = [_measured(results, each, column) for each in (name, baseline)]
        if pair[0] is not None and pair[1] is not None:
            verdict = "better" if pair[0] < pair[1] else "worse" if pair[0] > pair[1] else "equal"
            numbers = [f"{scale * value:.{digits}f}{unit}" for value in pair if value is not None]
            parts.append(f"{title} {numbers[0]} against {numbers[1]} ({verdict})")
    if parts:
        yield f"Its probabilities as trained, beside those of {baseline}: {', '.join(parts)}."


def _measured(results: Results, name: str, column: str) -> float | None:
    values = [run.measured(column) for run in results.groups[name]]
    present = [value for value in values if value is not None]
    return stats.mean(present) if len(present) == len(values) else None


def _has_table(results: Results, name: str) -> bool:
    mode = results.groups[name][0].mode
    return mode in MODES and MODES[mode].has_table
