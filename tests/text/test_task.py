import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small_text import SMALL, MakeTask, run, write_corpus

import labelemb.training.engine
from labelemb.errors import InputError
from labelemb.experiments.job import Job, execute
from labelemb.experiments.tuning import parse_grid
from labelemb.experiments.tuning_runs import plan_tuning, record
from labelemb.losses.table import LabelTable
from labelemb.run_folder import RunFolder
from labelemb.settings.recipe import load_recipe, read_comparison
from labelemb.text.corpus.corpus import Split
from labelemb.text.run_files import BestNetwork
from labelemb.text.task import TextTask
from labelemb.text.translate import Network
from labelemb.training.checkpoint import load_newest
from labelemb.training.engine import train


class Killed(Exception):  # noqa: N818
    pass


def rows_of(task: TextTask) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in task.folder.metrics]


def kill_after(task: TextTask, steps: int) -> list[str]:
    """Train and die without a word after so many steps; what was said before the first."""
    said: list[str] = []

    def progress(done: int, planned: int, message: str) -> None:
        if done == steps and not message:
            raise Killed

    with pytest.raises(Killed):
        train(task, task.settings, task.folder, progress, said.append)
    return said


def test_step_equals_loss_over_the_logits_of_unpadded_tokens(make_task: MakeTask) -> None:
    task = make_task("emb")
    task.module.double().eval()
    batch = next(task.batches(0, 0))
    terms = task.module(*batch).terms
    network, criterion = task.module.network, task.module.criterion
    features = network.features(batch.source, batch.source_lengths, batch.target_in, batch.target_lengths)
    expected = criterion.terms(network.head(features), batch.target, features)
    assert len(batch.target) == int(batch.target_lengths.sum()) < batch.target_in.numel()
    torch.testing.assert_close(torch.stack([*terms]), torch.stack([*expected]), rtol=1e-10, atol=1e-10)


def test_batches_are_a_function_of_seed_and_epoch_and_leave_the_random_state_alone(make_task: MakeTask) -> None:
    task, again, other = make_task("baseline"), make_task("emb"), make_task("baseline", seed=1)
    state = torch.get_rng_state()
    first = [batch.target.tolist() for batch in task.batches(1, 0)]
    assert torch.equal(torch.get_rng_state(), state)
    assert [batch.target.tolist() for batch in again.batches(1, 2)] == first[2:]
    assert [batch.target.tolist() for batch in other.batches(1, 0)] != first
    assert [batch.target.tolist() for batch in task.batches(2, 0)] != first


def test_all_modes_of_a_seed_start_from_the_same_network(make_task: MakeTask) -> None:
    states = [make_task(mode).module.network.state_dict() for mode in ("baseline", "smoothing", "emb")]
    for state in states[1:]:
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())


@pytest.mark.parametrize("recipe", ["iwslt15", "lcsts", "multi30k", "translate"])
def test_two_steps_of_every_recipe(make_task: MakeTask, recipe: str) -> None:
    task = make_task("emb", "batch_size=40", "emb.soft_after=0.5", recipe=recipe)
    run(task)
    assert [row["step"] for row in rows_of(task)] == [1, 2]
    assert [row["train_soft"] > 0 for row in rows_of(task)] == [False, True]
    assert 0 <= task.folder.evaluation["test"][task.settings.metric] <= 100
    assert task.folder.evaluation["signature"]


@pytest.mark.parametrize("mode", ["baseline", "smoothing", "tfkd", "emb"])
@pytest.mark.parametrize("network", ["lstm", "transformer"])
def test_every_mode_trains_every_network(make_task: MakeTask, mode: str, network: str) -> None:
    task = run(make_task(mode, f"model.name={network}", "batch_tokens=24", "batch_size=1"))
    first, last = rows_of(task)[0], rows_of(task)[-1]
    assert last["train_hard"] < first["train_hard"]
    assert last["step"] == 2 * task.num_batches
    assert task.folder.table.is_file() == (mode == "emb")


@pytest.mark.parametrize("mode", ["emb-start", "emb-frozen"])
def test_learned_table_serves_another_run_from_its_first_step(make_task: MakeTask, mode: str) -> None:
    path = run(make_task("emb")).folder.table
    task = make_task(mode, table=str(path))
    assert LabelTable.load(path).label_names == list(task.corpus.target_vocabulary.tokens)
    run(task)
    assert all(row["train_soft"] > 0 for row in rows_of(task))


def test_table_of_other_words_is_refused(make_task: MakeTask, tmp_path: Path) -> None:
    LabelTable(12, rank=8, label_names=[f"label {index}" for index in range(12)]).save(tmp_path / "table.safetensors")
    with pytest.raises(ValueError, match="learned for other labels"):
        make_task("emb-start", table=str(tmp_path / "table.safetensors"))


def test_soft_weight_switches_at_soft_after_and_after_a_resume(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelemb.training.engine, "checkpoint_pause", lambda save_seconds: 0.0)
    overrides = ("epochs=3", "emb.soft_after=7")
    seen: list[float] = []

    def watched() -> TextTask:
        task = make_task("emb", *overrides)
        task.module.register_forward_pre_hook(lambda module, _: seen.append(module.criterion.soft_weight))
        return task

    assert kill_after(watched(), 9) == ["emb: soft labels from epoch 2 of 3"]
    assert seen == [0.0] * 7 + [1.0] * 2
    seen.clear()
    run(watched())
    assert seen == [1.0] * 6


@pytest.mark.parametrize("steps", [3, 5, 8])
def test_killed_and_resumed_run_ends_as_one_that_was_not(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(labelemb.training.engine, "checkpoint_pause", lambda save_seconds: 0.0)
    whole = run(make_task("emb", "model.dropout=0.3", "model.layers=2"))
    kill_after(make_task("emb", "model.dropout=0.3", "model.layers=2", output="killed"), steps)
    resumed = run(make_task("emb", "model.dropout=0.3", "model.layers=2", output="killed"))
    assert rows_of(resumed) == rows_of(whole)
    assert resumed.folder.evaluation == whole.folder.evaluation
    for name in ("predictions.txt", "examples/examples.jsonl", "checkpoints/best-00000010.safetensors"):
        assert (resumed.folder.path / name).read_bytes() == (whole.folder.path / name).read_bytes()
    left, right = whole.module.state_dict(), resumed.module.state_dict()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_best_network_survives_and_the_last_checkpoint_holds_the_last(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([30.0, 20.0, 10.0])
    monkeypatch.setattr(
        "labelemb.text.task.score_lines", lambda settings, outputs, references: ({"bleu": next(scores, 5.0)}, "made up")
    )
    task = run(make_task("baseline", "epochs=3", "decode.beam_epochs=0"))
    best = BestNetwork(task.folder.checkpoints)
    assert best.record == {"epoch": 1, "step": 5, "score": 30.0, "file": "best-00000005.safetensors"}
    newest = load_newest(task.folder.checkpoints)
    assert newest is not None
    weight = newest["module"]["network.head.weight"]
    assert torch.equal(weight, task.module.network.head.weight)
    assert not torch.equal(weight, best.load()["head.weight"])


def test_best_network_keeps_the_earliest_of_equals_and_one_file(tmp_path: Path) -> None:
    best = BestNetwork(tmp_path)
    with pytest.raises(InputError, match="no best network yet"):
        best.load()
    for epoch, score in enumerate([1.0, 3.0, 3.0, 2.0], 1):
        network = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(network.weight, epoch)
        best.offer(network, epoch, 10 * epoch, score)
    assert best.load()["weight"].item() == 2
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-00000020.safetensors"]


BEST = {"epoch": 1, "step": 5, "score": 1.0, "file": "best-00000005.safetensors"}


@pytest.mark.parametrize(
    "content",
    [
        '{"epoch": ',
        "[]",
        "",
        "{}",
        json.dumps(BEST | {"score": None}),
        json.dumps(BEST | {"epoch": "1"}),
        json.dumps(BEST | {"file": 3}),
        json.dumps(BEST | {"file": "../best-00000005.safetensors"}),
    ],
)
def test_a_damaged_record_of_the_best_network_is_named(tmp_path: Path, content: str) -> None:
    best = BestNetwork(tmp_path / "checkpoints")
    best.offer(torch.nn.Linear(1, 1), 1, 5, 1.0)
    assert best.record == BEST
    (tmp_path / "best-00000005.safetensors").write_bytes(b"")
    (tmp_path / "checkpoints" / "best.json").write_text(content)
    for use in (best.load, lambda: best.offer(torch.nn.Linear(1, 1), 2, 10, 2.0)):
        with pytest.raises(ValueError, match=r"checkpoints/best\.json is damaged") as error:
            use()
        assert "\n" not in str(error.value)


def test_run_folder_holds_what_the_page_shows(make_task: MakeTask) -> None:
    task = run(make_task("baseline"))
    evaluation = task.folder.evaluation
    lines = (task.folder.path / "predictions.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# {evaluation['signature']}"
    assert len(lines) == 6
    examples = (task.folder.examples / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["output"] for line in examples] == lines[1:]
    assert evaluation["scored_on"] == "test"
    assert evaluation["best"]["score"] == max(row["valid_bleu"] for row in rows_of(task))
    assert all(row["valid_perplexity"] > 1 for row in rows_of(task))


def test_perplexity_is_that_of_the_hard_term_whatever_the_mode(make_task: MakeTask) -> None:
    values = set()
    for mode in ("smoothing", "emb", "baseline"):
        task = make_task(mode)
        task.module.eval()
        values.add(task.evaluate_epoch(1)["valid_perplexity"])
    split, network = task.corpus.valid, task.module.network
    total = count = 0.0
    for index in range(len(split)):
        source = torch.tensor(task.corpus.source_vocabulary.encode(split.source_lines[index]))[None]
        words = task.corpus.target_vocabulary.encode(split.target_lines[index])
        target_in, target_out = torch.tensor([[2, *words]]), torch.tensor([*words, 3])
        lengths = torch.tensor([source.shape[1]]), torch.tensor([len(target_out)])
        log_probs = network.head(network.features(source, lengths[0], target_in, lengths[1])).log_softmax(1)
        total -= log_probs[range(len(target_out)), target_out].sum().item()
        count += len(target_out)
    assert [*values] == [pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-5)]


def test_a_run_of_tuning_does_not_touch_the_test_text(make_task: MakeTask) -> None:
    task = make_task("emb", "tuning=point")
    assert task.corpus.test is not None
    looked_at: list[Split] = []
    translate = task._translate

    def seen(network: Network, split: Split, **options: Any) -> list[str]:
        looked_at.append(split)
        return translate(network, split, **options)

    task.__dict__["_translate"] = seen
    run(task)
    assert {id(split) for split in looked_at} == {id(task.corpus.valid)}
    assert task.folder.evaluation["scored_on"] == "valid"
    assert "test" not in task.folder.evaluation
    assert len((task.folder.path / "predictions.txt").read_text(encoding="utf-8").splitlines()) == 1 + 6


def test_scores_choose_by_the_development_text_at_its_best_epoch(corpus_folder: Path, tmp_path: Path) -> None:
    options = {"compare.modes": ["baseline"], "data.path": str(corpus_folder), "device": "cpu"}
    asked = read_comparison("translate", SMALL, options)
    (trials,) = plan_tuning(asked, parse_grid("optimizer.lr=1e-6,0.02"), 1, tmp_path)
    for (job,) in trials.jobs:
        execute(job)
    found = record(trials)
    best = [max(row["valid_bleu"] for row in job.folder.metrics) for (job,) in trials.jobs]
    assert [point["values"] for point in found["points"]] == [[score] for score in best]
    assert (found["judged_by"], found["epoch"]) == ("valid_bleu", "best")
    assert found["chosen"] == found["points"][best.index(max(best))]["settings"]


def test_corpus_without_a_test_text_is_scored_on_the_development_text(make_task: MakeTask, tmp_path: Path) -> None:
    from labelemb.settings.preprocess import PreprocessOptions
    from labelemb.text.corpus.preprocess import preprocess

    write_corpus(tmp_path)
    files: dict[str, Any] = {
        f"{split}_{end}": tmp_path / f"{split}.{end}" for split in ("train", "valid") for end in ("src", "tgt")
    }
    preprocess(PreprocessOptions(tmp_path / "two", **files))
    evaluation = run(make_task("baseline", corpus=tmp_path / "two")).folder.evaluation
    assert evaluation["scored_on"] == "valid"
    assert evaluation["test"] == evaluation["valid"]


def test_missing_corpus_is_named_with_its_source(make_task: MakeTask, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"get IWSLT15 .*https.*labelemb preprocess.*--data FOLDER"):
        make_task("emb", recipe="iwslt15", **{"data.path": None})
    with pytest.raises(InputError, match=r"expected a corpus with metadata\.json"):
        make_task("emb", corpus=tmp_path)


def test_run_started_with_other_vocabularies_is_refused(make_task: MakeTask, tmp_path: Path) -> None:
    make_task("baseline").begin()
    other = write_corpus(tmp_path, ("one", "two", "three", "four"))
    with pytest.raises(InputError, match="started with other vocabularies"):
        make_task("baseline", corpus=other)


def test_soft_after_that_is_never_reached_is_refused(make_task: MakeTask) -> None:
    with pytest.raises(InputError, match=r"after 10 updates, but the run has only 10"):
        run(make_task("emb", "emb.soft_after=10"))
    run(make_task("baseline", "emb.soft_after=10"))


def test_a_run_refused_for_soft_after_leaves_no_folder(tmp_path: Path) -> None:
    """A folder left behind would hold its vocabularies, and refuse the corrected corpus."""
    overrides = [*SMALL, "emb.rank=8", "emb.soft_after=10", "device=cpu"]
    settings = load_recipe("translate", overrides, {"mode": "emb", "data.path": str(write_corpus(tmp_path))})
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match="after 10 updates"):
        execute(Job(settings, folder))
    assert not folder.path.exists()


def test_settings_that_do_not_go_together_are_refused(make_task: MakeTask) -> None:
    with pytest.raises(InputError, match="hidden is 16: expected a multiple of the 3 heads"):
        make_task("emb", "model.name=transformer", "model.heads=3")


def test_shared_vocabulary_shares_the_embedding(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task("baseline", corpus=write_corpus(tmp_path, share=True))
    assert task.module.network.source_embedding is task.module.network.target_embedding
    run(task)
