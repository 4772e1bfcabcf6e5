"""The features that a loss needs, caught where the classifier receives them: the loss is called without them."""

import weakref
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from labelemb.losses.arguments import is_traced
from labelemb.losses.shapes import rows

PASS_FEATURES = "pass features: criterion(logits, target, features)"


class Caught:
    """What a watched head was given and the loss has not taken yet: the input of one forward, detached."""

    def __init__(self, head: nn.Module) -> None:
        self._features: Tensor | None = None  # (N, D, ...)
        self._num_unused = 0
        self._hook = head.register_forward_hook(Hook(self), with_kwargs=True)
        self.is_over = False

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy of a criterion watches nothing

    def end(self) -> None:
        """Watch the head no more."""
        self._hook.remove()
        self._features, self.is_over = None, True

    def keep(self, features: Tensor) -> None:
        """Keep the features (N, D, ...) of a forward; of two that nobody took, none."""
        self._num_unused += 1
        self._features = features if self._num_unused == 1 else None

    def take(self, logits: Tensor, features: Tensor | None) -> Tensor:
        """The features of a call: those given, or those kept, as the shape of `logits` asks; none is kept afterwards.

        Logits (N', C) of a head that gave more axes are taken as flattened in their order.

        Raises:
            ValueError: none are given, and the head had no forward since the last call, several, or one of another
                shape.
        """
        kept, num_unused = self._features, self._num_unused
        self._features, self._num_unused = None, 0
        if features is not None:
            return features
        if kept is None:
            times = "no forward with gradients" if num_unused == 0 else f"{num_unused} forwards"
            known = "; what is compiled or recomputed is not seen" if num_unused == 0 else ", of which one is meant"
            raise ValueError(f"the watched head had {times} since the last call{known}: {PASS_FEATURES}")
        if logits.ndim == 2 and kept.ndim > 2:
            kept = rows(kept)
        if (kept.shape[0], *kept.shape[2:]) != (logits.shape[0], *logits.shape[2:]):
            raise ValueError(
                f"what the watched head was given, (N, D, ...) = {tuple(kept.shape)}, does not fit logits "
                f"{tuple(logits.shape)}: {PASS_FEATURES}"
            )
        return kept


class Hook:
    """A head's forward hook. It reaches the criterion weakly, and a copy of it, with the model, reaches none."""

    only_watches = True  # a fused loss, which does not call the head, may leave it out

    def __init__(self, caught: Caught | None = None) -> None:
        self._caught: Callable[[], Caught | None] = _nothing if caught is None else weakref.ref(caught)

    def __reduce__(self) -> tuple[type["Hook"], tuple[()]]:
        return Hook, ()

    def __call__(
        self, head: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor], logits: Tensor
    ) -> None:
        """Keep the input of a forward that trains."""
        if is_traced() or not torch.is_grad_enabled() or _is_recomputed():
            return
        if (caught := self._caught()) is not None:
            features = (*arguments, *keywords.values())[0].detach()
            classes_last = not hasattr(head, "in_channels") and features.shape[:-1] == logits.shape[:-1]
            caught.keep(features.movedim(-1, 1) if classes_last and features.ndim > 2 else features)


class WatchHandle:
    """What `criterion.watch(head)` gives: `remove()` ends it, and so does leaving it as a context manager."""

    def __init__(self, caught: Caught | None = None) -> None:
        self._caught: Callable[[], Caught | None] = _nothing if caught is None else weakref.ref(caught)

    def remove(self) -> None:
        """Watch no more. A second time does nothing."""
        if (caught := self._caught()) is not None:
            caught.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class WatchesHead(nn.Module):
    """A criterion whose features may be caught where its classifier receives them."""

    _caught: Caught | None = None

    @property
    def needed_features(self) -> int | None:
        """D where a call needs features, None for a mode that does without."""
        return None

    def watch(self, head: nn.Module) -> WatchHandle:
        """Take the features from the input of `head` from now on: `criterion(logits, target)` is the call then.

        What is kept is the detached input of the head's last forward with gradients, until a call uses it. Without
        gradients nothing is kept, and the call gives `hard`, for validation. The head is held by nobody and holds the
        criterion weakly: copies and files of the model know nothing of it, and an EMA copy feeds nothing. Forwards
        that a checkpoint repeats in the backward pass do not count. Under torch.compile, pass features.

        Args:
            head: the module that receives (N, D), (N, ..., D) or, a convolution, (N, D, ...) and gives the logits. The
                call takes these, with classes second, or as rows in their order. A second head replaces the first.

        Returns:
            A handle with `remove()`, and a context manager. A mode that needs no features watches nothing.

        Raises:
            ValueError: no module, or one of another width; in a call: there was no forward since the last one, or
                several, or its shape does not fit.

        Example:
            >>> from labelemb import LabelEmbeddingLoss
            >>> model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            >>> criterion = LabelEmbeddingLoss(num_features=8, num_classes=3)
            >>> with criterion.watch(model[2]):
            ...     loss = criterion(model(torch.zeros(4, 6)), torch.tensor([0, 1, 2, 0]))
        """
        if self.needed_features is None:
            return WatchHandle()
        _check_head(head, self.needed_features)
        if self._caught is not None:
            self._caught.end()
        self._caught = Caught(head)
        return WatchHandle(self._caught)

    def _watched(self) -> Caught | None:
        if self._caught is not None and self._caught.is_over:
            self._caught = None
        return self._caught


def _check_head(head: nn.Module, num_features: int) -> None:
    """Raise ValueError unless it is a module, of a width that fits where it says one."""
    if not isinstance(head, nn.Module):
        raise ValueError(f"expected the module that makes the logits, e.g. model.fc, got {type(head).__name__}")
    width = getattr(head, "in_features", getattr(head, "in_channels", num_features))
    if width != num_features:
        raise ValueError(f"the head receives {width} features, the criterion has num_features={num_features}")


def _is_recomputed() -> bool:
    """Whether this forward runs inside a backward pass: checkpointing makes activations again."""
    # There is no public question after it; the test with checkpointing fails should this one go.
    return torch._C._current_graph_task_id() != -1


def _nothing() -> None:
    return None
