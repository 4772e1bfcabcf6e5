"""Soft labels under the Trainer of Hugging Face transformers: `compute_loss_func=attach(model, criterion)`."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from labelemb.integrations.beside_the_model import SaveBeside, restore
from labelemb.integrations.reach import only_selects, reached
from labelemb.losses.arguments import check_plain_linear
from labelemb.losses.soft_label import SoftLabelLoss

# The criterion's place in the model. The Trainer decays no parameter whose name holds "bias": its documented rule.
NAME = "soft_labels_like_bias"
_IGNORED = -100  # what the Trainer counts as no item
_CHANGES_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier")


def attach(
    model: PreTrainedModel, criterion: SoftLabelLoss, *, head: nn.Linear | None = None, fused: bool | None = None
) -> "SoftLabelLossFunc":
    """A model's `compute_loss_func` for the Trainer: sequence and token classification, seq2seq and causal models.

    The criterion becomes a part of the model: whatever optimises, wraps and saves the one has the other, without weight
    decay. `model.save_pretrained(folder)` writes it beside the model; attached to a model that was loaded from such
    a folder, the criterion goes on from there. In training the loss is the criterion's, a mean over
    `num_items_in_batch`; without gradients it is `hard`, the cross entropy, so `eval_loss` compares modes.

    While it trains the head gives its input in place of logits, and the loss computes them: `outputs.logits` are
    features then. Calls with `labels` or without gradients are as ever.

    Args:
        model: with a last nn.Linear that makes the logits; one whose labels are indices.
        criterion: of the head's width and number of labels, with reduction "mean" and ignore_index -100.
        head: that layer; None: the output embeddings, else the last nn.Linear of as many outputs as labels.
        fused: for models that generate, whether the loss never makes the logits (N, V), where the mode has such a form.
            False also for models that change their logits after the head, where None sees that by itself.

    Returns:
        A function (outputs, labels, num_items_in_batch) -> loss. Its `own_group` gives the optimiser's settings for
        the criterion alone.

    Raises:
        ValueError: there is no such head, the criterion does not fit it, or the problem is not one label an item.

    Example:
        criterion = LabelEmbeddingLoss(model.config.hidden_size, model.config.num_labels)
        trainer = Trainer(model, args, train_dataset=data, compute_loss_func=attach(model, criterion))
    """
    _check(model, criterion)
    if hasattr(model, NAME):
        raise ValueError("the model has a criterion already")
    head = _head_of(model, criterion) if head is None else head
    _check_sizes(head, criterion)
    criterion.to(model.device)
    model.add_module(NAME, criterion)
    if model.name_or_path:  # of a model that was loaded
        restore(criterion, Path(model.name_or_path))
    # An object that holds the model: copied with it, it holds the copy.
    vars(model)["save_pretrained"] = SaveBeside(model, NAME)
    return SoftLabelLossFunc(model, head, fused)


class SoftLabelLossFunc:
    """What `attach` gives to the Trainer.

    Args:
        model: with its criterion.
        head: the last layer.
        fused: as for `attach`.
    """

    def __init__(self, model: PreTrainedModel, head: nn.Linear, fused: bool | None) -> None:
        self.criterion: SoftLabelLoss = model.get_submodule(NAME)
        self.head = head
        self.is_generative = bool(model.can_generate())
        self.shifts = self.is_generative and not model.config.is_encoder_decoder
        self.passes = not _changes_logits(model) if fused is None else fused or not self.is_generative
        has_form = type(self.criterion).fused_terms is not SoftLabelLoss.fused_terms
        self.is_fused = self.passes and self.is_generative and has_form
        if not self.is_fused and self.criterion.needed_features is None:
            self.passes = False  # the model's own logits are all that is needed
        if self.passes:
            check_plain_linear(head)
        self._features: Tensor | None = None
        self._autocast: tuple[str, torch.dtype] | None = None  # what the head ran under
        self._num_items: Tensor | int | None = None
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end, always_call=True)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of a batch, 0-d: the criterion's, or without gradients `hard`."""
        features, self._features = self._features, None
        if labels is None or labels.is_floating_point():
            raise ValueError("soft labels need `labels` of class indices in every batch")
        if self.shifts:
            labels = F.pad(labels, (0, 1), value=_IGNORED)[..., 1:]
        logits, target = outputs["logits"], labels.reshape(-1)
        if not torch.is_grad_enabled():
            return self.criterion.hard(logits.reshape(len(target), -1), target, num_items=num_items_in_batch)
        self._begin_step(num_items_in_batch)
        with contextlib.nullcontext() if self._autocast is None else torch.autocast(*self._autocast):
            return self._training_loss(logits, target, features, num_items_in_batch)

    def own_group(self, trainer: Trainer, **options: Any) -> None:
        """Give the criterion's parameters a group of their own in the trainer's optimiser, before it trains.

        Args:
            trainer: whose optimiser is made now, unless it was.
            options: of the group, e.g. lr=1e-3; weight_decay is 0.
        """
        optimizer = trainer.create_optimizer()
        own = list(self.criterion.parameters())
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if not any(parameter is one for one in own)]
        optimizer.add_param_group({"params": own, "weight_decay": 0.0} | options)

    def _training_loss(
        self, logits: Tensor, target: Tensor, features: Tensor | None, num_items: Tensor | int | None
    ) -> Tensor:
        if features is None and self.criterion.needed_features is not None:
            raise ValueError("the head was not called as it is in training: with torch.compile choose another mode")
        logits = logits.reshape(-1, logits.shape[-1])  # (N, C), or where the head passes its input (N, D)
        if self.passes and features is not None:
            if not only_selects(logits, features):
                raise ValueError(
                    "the model computes with what its head gives before it returns logits: attach(..., fused=False)"
                )
            features = logits.to(features.dtype)
            if self.is_fused:
                return self.criterion.fused(features, target, self.head, num_items=num_items)
            logits = self.head(features)
        elif features is not None:
            features = features.reshape(-1, features.shape[-1])
        loss: Tensor = self.criterion(logits, target, features, num_items=num_items)
        return loss

    def _begin_step(self, num_items: Tensor | int | None) -> None:
        """End the step before: the Trainer counts the items once for all batches of a step, in one object."""
        if num_items is not None and num_items is not self._num_items:
            if self._num_items is not None:
                self.criterion.end_step()
            self._num_items = num_items

    def _begin(self, _: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        self._features = None
        trains = torch.is_grad_enabled() and keywords.get("labels") is None and not torch.compiler.is_compiling()
        if trains and (self.passes or self.criterion.needed_features is not None or self._parameters()):
            vars(self.head)["forward"] = self._answer

    def _end(self, *_: Any) -> None:
        vars(self.head).pop("forward", None)

    def _answer(self, features: Tensor) -> Tensor:
        """What the head gives in training: its input (..., D), or its logits (..., C), and keeps its input."""
        device_type = features.device.type
        is_on = torch.is_autocast_enabled(device_type)
        self._autocast = (device_type, torch.get_autocast_dtype(device_type)) if is_on else None
        if self.passes:
            self._features = reached(features, self._parameters())
            return self._features
        self._features = features.detach()
        return reached(nn.Linear.forward(self.head, features), self._parameters())

    def _parameters(self) -> list[Tensor]:
        """What the loss reads outside the model's forward, where a wrapper of the model does not see it used."""
        head = self.head.parameters() if self.passes else ()
        return [*head, *self.criterion.parameters()]


def _check(model: PreTrainedModel, criterion: SoftLabelLoss) -> None:
    problem = getattr(model.config, "problem_type", None)
    if problem in ("multi_label_classification", "regression"):
        raise ValueError(f"soft labels are for one label an item, not for problem_type={problem!r}")
    if criterion.reduction != "mean" or criterion.ignore_index != _IGNORED:
        raise ValueError(
            "the Trainer wants reduction='mean' and ignore_index=-100, got "
            f"{criterion.reduction!r} and {criterion.ignore_index}"
        )


def _check_sizes(head: nn.Linear, criterion: SoftLabelLoss) -> None:
    if head.out_features != criterion.num_classes:
        raise ValueError(f"the head has {head.out_features} outputs, the criterion num_classes={criterion.num_classes}")
    width = criterion.needed_features
    if width not in (None, head.in_features):
        raise ValueError(f"the head receives {head.in_features} features, the criterion has num_features={width}")


def _head_of(model: PreTrainedModel, criterion: SoftLabelLoss) -> nn.Linear:
    embeddings = model.get_output_embeddings()
    if isinstance(embeddings, nn.Linear):
        return embeddings
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    heads = [layer for layer in layers if layer.out_features == criterion.num_classes]
    if not heads:
        raise ValueError(f"found no nn.Linear of {criterion.num_classes} outputs in the model: attach(..., head=...)")
    return heads[-1]


def _changes_logits(model: PreTrainedModel) -> bool:
    """Whether the model is known to do something with its logits after the head."""
    settings = [getattr(model.config, name, None) for name in _CHANGES_LOGITS]
    return hasattr(model, "final_logits_bias") or any(value not in (None, 1, 1.0) for value in settings)
