"""labelemb.integrations.transformers with small models of random weights: nothing is downloaded."""

import copy
import importlib.util
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.small_batches import assert_exact
from tests.two_ranks import outputs_of_two_ranks
from torch import Tensor, nn

if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("accelerate") is None:
    pytest.skip("needs labelemb[transformers]", allow_module_level=True)
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}

import transformers
from transformers import Trainer, TrainingArguments

from labelemb import DecoupledLabelEmbeddingLoss, LabelEmbeddingLoss, LabelTable
from labelemb.integrations.transformers import NAME, attach
from labelemb.losses.fixed import baseline
from labelemb.losses.soft_label import SoftLabelLoss

pytestmark = pytest.mark.filterwarnings("default")  # of transformers and accelerate, whatever they are
D, C, V, T = 8, 3, 11, 5
RATE = 0.01
SIZES: dict[str, Any] = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
GPT2: dict[str, Any] = {"vocab_size": V, "n_positions": T, "n_embd": D, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
BART: dict[str, Any] = {"vocab_size": V, "d_model": D, "max_position_embeddings": 8}
for half in ("encoder", "decoder"):
    BART |= {f"{half}_layers": 1, f"{half}_attention_heads": 2, f"{half}_ffn_dim": 8}


def bert(kind: str) -> Any:
    config = transformers.BertConfig(vocab_size=V, max_position_embeddings=8, num_labels=C, **SIZES)
    return getattr(transformers, kind)(config)


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=V, d_model=D, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


MODELS: dict[str, Callable[[], Any]] = {
    "sequences": lambda: bert("BertForSequenceClassification"),
    "sequences, pooled": lambda: transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(num_labels=C, **GPT2)
    ),
    "tokens": lambda: bert("BertForTokenClassification"),
    "causal": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
    "causal, untied": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=V, **SIZES)),
    "seq2seq": t5,
    "seq2seq, changed logits": lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**BART)),
}
CRITERIA: dict[str, Callable[[int], SoftLabelLoss]] = {
    "emb": lambda classes: LabelEmbeddingLoss(D, classes),
    "decoupled": DecoupledLabelEmbeddingLoss,
    "baseline": baseline,
}


def make(task: str, mode: str = "emb") -> tuple[Any, SoftLabelLoss]:
    """A model without dropout and a criterion, in float64."""
    torch.manual_seed(0)
    model = MODELS[task]().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        for module in model.modules():
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model, CRITERIA[mode](classes_of(task)).double()


def classes_of(task: str) -> int:
    return C if task.startswith(("sequences", "tokens")) else V


def examples(task: str, number: int = 16) -> list[dict[str, Tensor]]:
    """Token ids and labels, some of them ignored, of different numbers in each example."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(number):
        ids = torch.randint(1, V, (T,), generator=generator)
        example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if task.startswith("sequences"):
            example["labels"] = torch.randint(C, (), generator=generator)
        else:
            example["labels"] = torch.randint(classes_of(task), (T,), generator=generator)
            example["labels"][: index % 4] = -100
        if task.startswith("seq2seq"):
            example["decoder_input_ids"] = torch.randint(1, V, (T,), generator=generator)
        made.append(example)
    return made


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {"output_dir": str(folder), "use_cpu": True, "report_to": [], "disable_tqdm": True}
    defaults |= {"per_device_train_batch_size": 2, "train_sampling_strategy": "sequential", "max_grad_norm": 0}
    defaults |= {"optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "max_steps": 2}
    defaults |= {"logging_steps": 1, "save_strategy": "no"}
    return TrainingArguments(**defaults | options)


def batches_of(items: list[dict[str, Tensor]], size: int = 2) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(items), size):
        yield {name: torch.stack([item[name] for item in items[start : start + size]]) for name in items[0]}


def logits_and_features(task: str, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the model itself gives for each label, (N, C), and what its head received there, (N, D)."""
    heads = [
        layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == classes_of(task)
    ]
    head = heads[-1] if model.get_output_embeddings() is None else model.get_output_embeddings()
    caught: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    handle.remove()
    features = caught[-1]
    if task == "sequences, pooled":
        features = features[:, -1]  # nothing is padded
    return logits, features


def plain_loop(task: str, model: Any, criterion: SoftLabelLoss, accumulation: int, steps: int = 2) -> list[float]:
    """The same training written out: SGD, the mean over the items of all batches of a step."""
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=RATE)
    batches, losses = batches_of(examples(task)), []
    model.train()
    for _ in range(steps):
        parts = [next(batches) for _ in range(accumulation)]
        targets = [part["labels"] for part in parts]
        if task.startswith("causal"):
            targets = [F.pad(target[:, 1:], (0, 1), value=-100) for target in targets]
        # The Trainer knows that some of the causal models shift their labels, and of others counts the first label too.
        shifted = task == "causal, untied"
        counted = targets if shifted else [part["labels"] for part in parts]
        num_items = sum(int((target != -100).sum()) for target in counted)
        optimizer.zero_grad()
        total = 0.0
        for part, target in zip(parts, targets, strict=True):
            logits, features = logits_and_features(task, model, part)
            rows = logits.reshape(-1, classes_of(task)), target.reshape(-1), features.reshape(-1, D)
            loss = criterion(*rows, num_items=num_items)
            loss.backward()
            total += loss.item()
        optimizer.step()
        criterion.end_step()
        losses.append(total)
    return losses


def losses_of(trainer: Any) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def assert_equal_models(trained: Any, model: nn.Module, criterion: nn.Module) -> None:
    expected = model.state_dict() | {f"{NAME}.{name}": value for name, value in criterion.state_dict().items()}
    found = trained.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12, msg=name)


CASES = [(task, "emb") for task in MODELS] + [
    ("sequences", "decoupled"),
    ("causal", "decoupled"),
    ("causal", "baseline"),
]


@pytest.mark.parametrize(("task", "mode"), CASES)
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_trainer_equals_the_plain_loop(task: str, mode: str, accumulation: int, tmp_path: Path) -> None:
    model, criterion = make(task, mode)
    plain_model, plain_criterion = copy.deepcopy(model), copy.deepcopy(criterion)
    before = copy.deepcopy(criterion.state_dict())
    options = arguments(tmp_path, gradient_accumulation_steps=accumulation)
    trainer = Trainer(model, options, train_dataset=examples(task), compute_loss_func=attach(model, criterion))
    trainer.train()
    expected = plain_loop(task, plain_model, plain_criterion, accumulation)
    assert losses_of(trainer) == pytest.approx(expected, rel=1e-6)  # as logged
    criterion.end_step()
    assert_equal_models(model, plain_model, plain_criterion)
    if mode == "emb":
        assert any(not torch.equal(value, before[name]) for name, value in criterion.state_dict().items())


def test_language_models_take_the_fused_path_where_there_is_one() -> None:
    for task in MODELS:
        expected = task in ("causal", "causal, untied", "seq2seq")
        assert attach(*make(task)).is_fused == expected, task


@pytest.mark.parametrize("task", ["causal", "seq2seq"])
def test_no_logits_are_made_in_training_and_all_in_evaluation(task: str) -> None:
    model, criterion = make(task)
    attach(model, criterion)
    batch = next(batches_of(examples(task)))
    labels = batch.pop("labels")
    assert model.train()(**batch).logits.shape == (2, T, D)
    assert model(**batch, labels=labels).logits.shape == (2, T, V)
    with torch.no_grad():
        assert model(**batch).logits.shape == (2, T, V)
    assert "forward" not in vars(model.get_output_embeddings())


def test_a_model_that_changes_its_logits_is_refused_by_the_fused_path() -> None:
    config = transformers.Gemma2Config(vocab_size=V, head_dim=4, num_key_value_heads=2, **SIZES)
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(config)
    loss_of = attach(model, LabelEmbeddingLoss(D, V), fused=True)
    batch = next(batches_of(examples("causal")))
    labels = batch.pop("labels")
    with pytest.raises(ValueError, match=r"computes with what its head gives.*fused=False"):
        loss_of(model.train()(**batch), labels)
    other = transformers.Gemma2ForCausalLM(config)
    assert not attach(other, LabelEmbeddingLoss(D, V)).is_fused


def test_the_validation_loss_is_hard(tmp_path: Path) -> None:
    for task in ("sequences", "causal"):
        model, criterion = make(task)
        data = examples(task, 4)
        options = arguments(tmp_path, per_device_eval_batch_size=4)
        trainer = Trainer(model, options, eval_dataset=data, compute_loss_func=attach(model, criterion))
        found = trainer.evaluate()["eval_loss"]
        (batch,) = batches_of(data, 4)
        with torch.no_grad():
            labels = batch.pop("labels")
            logits = model.eval()(**batch).logits
        if task == "causal":
            summed = F.cross_entropy(logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1), reduction="sum")
            expected = summed / (labels != -100).sum()  # the items that the Trainer counts of a GPT-2
        else:
            expected = F.cross_entropy(logits, labels)
        assert found == pytest.approx(expected.item(), rel=1e-6)


def test_a_resumed_run_equals_one_that_was_never_stopped(tmp_path: Path) -> None:
    def run(folder: Path, steps: int, *, resume: bool = False) -> Any:
        model, criterion = make("sequences")
        options = arguments(
            folder, max_steps=steps, save_strategy="steps", save_steps=2, optim="adamw_torch", weight_decay=0.1
        )
        trainer = Trainer(
            model, options, train_dataset=examples("sequences"), compute_loss_func=attach(model, criterion)
        )
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    resumed = run(tmp_path / "parts", 4, resume=True)
    for name, value in whole.state_dict().items():
        assert_exact(resumed.state_dict()[name], value)


def test_the_table_is_saved_beside_the_model_and_found_again(tmp_path: Path) -> None:
    model, criterion = make("sequences")
    options = arguments(tmp_path / "runs")
    trainer = Trainer(model, options, train_dataset=examples("sequences"), compute_loss_func=attach(model, criterion))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again, report = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "saved", dtype=torch.float64, output_loading_info=True
    )
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    fresh = make("sequences")[1]
    attach(again, fresh)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, criterion.state_dict()[name]), name
    table = LabelTable.load(tmp_path / "saved" / "label_table.safetensors")
    assert table.label_names == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert torch.equal(table.weight, criterion.state_dict()["table.weight"].to(table.weight.dtype))
    other = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="soft labels of another criterion"):
        attach(other, DecoupledLabelEmbeddingLoss(C))


def test_the_criterion_has_no_weight_decay_and_a_group_of_its_own_if_asked(tmp_path: Path) -> None:
    for own in (False, True):
        model, criterion = make("sequences")
        loss_of = attach(model, criterion)
        options = arguments(tmp_path, weight_decay=0.1)
        trainer = Trainer(model, options, train_dataset=examples("sequences"), compute_loss_func=loss_of)
        if own:
            loss_of.own_group(trainer, lr=0.5)
        trainer.train()
        groups = trainer.optimizer.param_groups
        ours = {id(parameter) for parameter in criterion.parameters()}
        decays = {group["weight_decay"] for group in groups for p in group["params"] if id(p) in ours}
        assert decays == {0.0}
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
        assert (groups[-1]["lr"], {id(p) for p in groups[-1]["params"]} == ours) == (
            (0.5, True) if own else (RATE, False)
        )


def test_a_copy_and_a_pickle_of_the_model_have_a_criterion_of_their_own(tmp_path: Path) -> None:
    model, criterion = make("sequences")
    attach(model, criterion)
    for number, other in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        own = other.get_submodule(NAME)
        assert own is not criterion
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.fill_(number + 0.5)
        other.save_pretrained(tmp_path / str(number))
        assert (LabelTable.load(tmp_path / str(number) / "label_table.safetensors").weight == number + 0.5).all()


def test_what_does_not_fit_is_refused() -> None:
    model, criterion = make("sequences")
    with pytest.raises(ValueError, match="num_features=9"):
        attach(model, LabelEmbeddingLoss(9, C))
    with pytest.raises(ValueError, match=r"found no nn\.Linear of 7 outputs"):
        attach(model, LabelEmbeddingLoss(D, 7))
    with pytest.raises(ValueError, match="reduction='mean'"):
        attach(model, LabelEmbeddingLoss(D, C, reduction="sum"))
    with pytest.raises(ValueError, match="ignore_index=-100"):
        attach(model, LabelEmbeddingLoss(D, C, ignore_index=0))
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="one label an item"):
        attach(model, criterion)
    model.config.problem_type = None
    loss_of = attach(model, criterion)
    with pytest.raises(ValueError, match="class indices"):
        loss_of({"logits": torch.zeros(2, C)}, torch.zeros(2, C))
    with pytest.raises(ValueError, match="has a criterion already"):
        attach(model, criterion)


def test_autocast_of_the_model_is_that_of_its_loss() -> None:
    model, criterion = make("causal")
    model.float()
    criterion.float()
    loss_of = attach(model, criterion)
    batch = next(batches_of(examples("causal")))
    labels = batch.pop("labels")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model.train()(**batch)
    outputs["logits"] = outputs["logits"].float()  # as accelerate gives them back
    loss = loss_of(outputs, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = loss_of(model(**batch), labels)
    assert loss.item() == expected.item()
    assert loss.item() != loss_of(model(**batch), labels).item()


WORKER = """
from tests.integrations.test_transformers import attach, batches_of, examples, make
from torch.nn.parallel import DistributedDataParallel
for task in ("sequences", "causal", "seq2seq, changed logits"):
    for find_unused in (True, False):
        model, criterion = make(task)
        loss_of = attach(model, criterion)
        wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
        for step in range(2):
            batch = list(batches_of(examples(task, 4)))[rank]
            labels = batch.pop("labels")
            wrapped.zero_grad()
            (2 * loss_of(wrapped(**batch), labels, num_items_in_batch=9)).backward()
        gradients = {{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}
        torch.save(gradients, f"{folder}/{{task}}-{{find_unused}}-{{rank}}")
dist.destroy_process_group()
"""


def test_two_ranks_have_the_gradients_of_one_process(tmp_path: Path) -> None:
    outputs_of_two_ranks(WORKER.format(folder=tmp_path), tmp_path)
    for task in ("sequences", "causal", "seq2seq, changed logits"):
        model, criterion = make(task)
        loss_of = attach(model, criterion)
        for batch in batches_of(examples(task, 4)):
            labels = batch.pop("labels")
            loss: Tensor = loss_of(model.train()(**batch), labels, num_items_in_batch=9)
            torch.autograd.backward(loss)
        for find_unused in (True, False):
            for rank in range(2):
                found = torch.load(tmp_path / f"{task}-{find_unused}-{rank}")
                for name, parameter in model.named_parameters():
                    if parameter.grad is not None:
                        assert_exact(found[name], parameter.grad)
