import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.small_text import run, small_task, write_corpus

import labelemb.text.predict
from labelemb.errors import InputError
from labelemb.settings.config import TextSettings
from labelemb.text.corpus.vocab import UNK
from labelemb.text.predict import PredictOptions, predict_text
from labelemb.text.task import TextTask
from labelemb.text.translate import Translator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path) -> TextTask:
    """A run long enough that best and last checkpoint differ."""
    return run(
        small_task(
            tmp_path_factory.mktemp("runs"), corpus_folder, "emb", "epochs=3", "decode.beam=3", "optimizer.lr=0.03"
        )
    )


def output_of(options: PredictOptions) -> Path:
    assert options.output is not None
    return options.output


def predict(task: TextTask, options: PredictOptions) -> str:
    assert isinstance(task.settings, TextSettings)
    return predict_text(task.folder, task.settings, options, CPU)


def predicted(task: TextTask, options: PredictOptions, lines: list[str]) -> list[str]:
    """The output lines for source lines."""
    source = output_of(options).with_name("source.txt")
    source.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert predict(task, replace(options, src=source)) == f"{len(lines)} lines"
    text = output_of(options).read_text(encoding="utf-8")
    assert text.endswith("\n")
    return text[:-1].split("\n")


@pytest.fixture
def options(tmp_path: Path) -> PredictOptions:
    return PredictOptions(tmp_path / "output.txt")


def test_corpus_gives_the_predictions_and_score_of_the_run(trained: TextTask, options: PredictOptions) -> None:
    line = predict(trained, replace(options, data=trained.corpus.folder))
    assert line == f"bleu {trained.folder.evaluation['test']['bleu']:.2f}  {trained.folder.evaluation['signature']}"
    expected = (trained.folder.path / "predictions.txt").read_text(encoding="utf-8").partition("\n")[2]
    assert output_of(options).read_text(encoding="utf-8") == expected


def test_references_are_scored_as_the_run_was(trained: TextTask, options: PredictOptions) -> None:
    folder = trained.corpus.folder.parent
    line = predict(trained, replace(options, src=folder / "test.src", ref=folder / "test.tgt"))
    assert line == f"bleu {trained.folder.evaluation['test']['bleu']:.2f}  {trained.folder.evaluation['signature']}"


def test_empty_line_gives_an_empty_line_in_its_place(trained: TextTask, options: PredictOptions) -> None:
    alone = [predicted(trained, options, [line])[0] for line in ("red sea", "dog sings good")]
    assert all(alone)
    together = predicted(trained, options, ["", "red sea", "   ", "dog sings good", ""])
    assert together == ["", alone[0], "", alone[1], ""]


def test_stream_of_blocks_gives_what_one_block_gives(
    trained: TextTask, options: PredictOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["red sea dog", "", "rain", "good joke runs sings", "dog"]
    whole = predicted(trained, options, lines)
    monkeypatch.setattr(labelemb.text.predict, "BLOCK_LINES", 2)
    assert predicted(trained, options, lines) == whole


def test_long_source_is_translated_and_does_not_change_its_neighbours(
    trained: TextTask, options: PredictOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = " ".join(["dog", "sea"] * 300)
    together = predicted(trained, options, ["red sea", long, "rain"])
    assert together == [predicted(trained, options, [line])[0] for line in ("red sea", long, "rain")]
    monkeypatch.setattr("labelemb.text.translate._BATCH_TOKENS", 100)
    assert predicted(trained, options, ["red sea", long, "rain"]) == together


def test_beam_and_length_options_hold(trained: TextTask, options: PredictOptions) -> None:
    lines = ["red sea dog", "rain good"]
    assert all(len(line.split()) <= 1 for line in predicted(trained, replace(options, max_length=1), lines))
    greedy = predicted(trained, replace(options, beam=1), lines)
    translator = Translator(
        trained.module.network,
        trained.corpus.source_vocabulary,
        trained.corpus.target_vocabulary,
        trained.settings.decode,
    )
    last = predicted(trained, replace(options, beam=1, checkpoint="last"), lines)
    assert last == [translation.text for translation in translator.translate(lines, beam=1)]
    assert len(greedy) == 2


def test_attention_is_a_json_line_a_source_line(trained: TextTask, options: PredictOptions) -> None:
    path = output_of(options).with_name("attention.jsonl")
    outputs = predicted(trained, replace(options, attention=path), ["red sea dog", "", "snow rain"])
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [record["source"] for record in records] == [["red", "sea", "dog"], [], ["snow", "rain"]]
    for record, output in zip(records, outputs, strict=True):
        assert " ".join(record["output"]) == output
        assert len(record["attention"]) == len(record["output"])
        assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in record["attention"])


@pytest.mark.parametrize("beam", [1, 3])
def test_unknown_word_is_replaced_by_the_most_attended_source_word(trained: TextTask, beam: int) -> None:
    network, line = trained.module.network, "Schnee sea Hund"
    bias = network.head.bias.detach().clone()
    decode = trained.settings.decode.model_copy(update={"max_length": 4})
    vocabularies = trained.corpus.source_vocabulary, trained.corpus.target_vocabulary
    try:
        with torch.no_grad():
            network.head.bias[UNK] = 100.0
        (replaced,) = Translator(network, *vocabularies, decode).translate([line], beam=beam)
        kept = decode.model_copy(update={"replace_unknown": False})
        (unknown,) = Translator(network, *vocabularies, kept).translate([line], beam=beam)
    finally:
        network.head.bias.data.copy_(bias)
    assert unknown.text == "<unk> <unk> <unk> <unk>"
    assert replaced.tokens == [line.split()[place] for place in replaced.attention.argmax(1).tolist()]


def test_options_out_of_range_are_refused(trained: TextTask, options: PredictOptions, tmp_path: Path) -> None:
    source = trained.corpus.folder.parent / "test.src"
    with pytest.raises(InputError, match="--beam 0: expected 1 or more, at most 10,000, 1 is greedy"):
        predict(trained, replace(options, src=source, beam=0))
    with pytest.raises(InputError, match="--max-length 0: expected 1 or more"):
        predict(trained, replace(options, src=source, max_length=0))
    with pytest.raises(InputError, match="--beam 99999: expected 1 or more, at most 10,000, 1 is greedy"):
        predict(trained, replace(options, src=source, beam=99999))
    with pytest.raises(InputError, match="--checkpoint first: expected best or last"):
        predict(trained, replace(options, src=source, checkpoint="first"))
    with pytest.raises(InputError, match="expected one of --src FILE"):
        predict(trained, options)
    with pytest.raises(InputError, match="a corpus has its own references"):
        predict(trained, replace(options, data=trained.corpus.folder, ref=source))
    with pytest.raises(ValueError, match=r"nowhere\.txt: no such file"):
        predict(trained, replace(options, src=tmp_path / "nowhere.txt"))
    assert not output_of(options).exists()


def test_references_of_other_length_are_refused_before_work(trained: TextTask, options: PredictOptions) -> None:
    folder = trained.corpus.folder.parent
    with pytest.raises(InputError, match=r"test\.src has 5 lines, --ref .*valid\.tgt has 6"):
        predict(trained, replace(options, src=folder / "test.src", ref=folder / "valid.tgt"))
    assert not output_of(options).exists()


def test_broken_line_leaves_no_half_of_an_output(trained: TextTask, options: PredictOptions, tmp_path: Path) -> None:
    (tmp_path / "source.txt").write_bytes(b"red sea\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"line 2: byte 1 .* is not UTF-8"):
        predict(trained, replace(options, src=tmp_path / "source.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["source.txt"]


def test_checkpoint_of_another_vocabulary_is_refused(
    corpus_folder: Path, options: PredictOptions, tmp_path: Path
) -> None:
    task = run(small_task(tmp_path / "runs", corpus_folder, "baseline", "epochs=1"))
    other = write_corpus(tmp_path, ("one", "two", "three"))
    with pytest.raises(InputError, match=r"encoded with another vocabulary .* give its raw text as --src"):
        predict(task, replace(options, data=other))
    (task.folder.path / "target.vocabulary.json").write_bytes((other / "target.vocabulary.json").read_bytes())
    source = corpus_folder.parent / "test.src"
    with pytest.raises(InputError, match=r"target\.vocabulary\.json is not the vocabulary that the run was trained"):
        predict(task, replace(options, src=source))
    for content in ("{", "[]", "{}", '{"vocabularies": []}'):
        (task.folder.path / "corpus.json").write_text(content)
        with pytest.raises(ValueError, match=r"corpus\.json is damaged"):
            predict(task, replace(options, src=source))
    (task.folder.path / "corpus.json").unlink()
    with pytest.raises(InputError, match=r"no corpus\.json; expected the folder of a text run"):
        predict(task, replace(options, src=source))


def test_weights_that_do_not_fit_the_vocabulary_are_refused(
    corpus_folder: Path, options: PredictOptions, tmp_path: Path
) -> None:
    task = run(small_task(tmp_path / "runs", corpus_folder, "baseline", "epochs=1"))
    other = small_task(tmp_path / "other", write_corpus(tmp_path, ("one", "two", "three")), "baseline")
    other.begin()
    for name in ("corpus.json", "source.vocabulary.json", "target.vocabulary.json"):
        (task.folder.path / name).write_bytes((other.folder.path / name).read_bytes())
    with pytest.raises(InputError, match=r"best checkpoint does not fit .* vocabularies of 7 and 7"):
        predict(task, replace(options, src=corpus_folder.parent / "test.src"))


def test_run_without_a_checkpoint_is_refused(corpus_folder: Path, options: PredictOptions, tmp_path: Path) -> None:
    task = small_task(tmp_path / "runs", corpus_folder, "baseline")
    task.begin()
    for checkpoint, message in {"best": "no best network yet", "last": "no checkpoint yet"}.items():
        with pytest.raises(InputError, match=message):
            predict(task, replace(options, src=corpus_folder.parent / "test.src", checkpoint=checkpoint))


def test_lines_come_from_standard_input_and_go_to_standard_output(
    trained: TextTask, options: PredictOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained.corpus.folder.parent
    expected = predicted(trained, options, ["red sea", "dog sings good"])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"red sea\ndog sings good\n")))
    assert predict(trained, PredictOptions(src=Path("-"))) == "2 lines"
    assert capsys.readouterr().out.splitlines() == expected
    scored = [
        predict(trained, replace(options, src=folder / "test.src", ref=folder / "test.tgt", output=output))
        for output in (options.output, None)
    ]
    assert scored[0] == scored[1]
