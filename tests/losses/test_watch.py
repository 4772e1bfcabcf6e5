"""`criterion.watch(head)`: a call without features is the call with them, and says so where it cannot be."""

import copy
import gc
import io
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.losses.test_modes import index, made
from tests.small_batches import assert_exact
from tests.two_ranks import outputs_of_two_ranks
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from labelemb import LabelEmbeddingLoss
from labelemb.losses.catalogue import MODES
from labelemb.losses.soft_label import SoftLabelLoss

F, D, C, N = 3, 4, 5, 6
WITH_FEATURES = ["emb", "uskd"]


class Network(nn.Module):
    """Body and head over the last axis, or with `images` over the second."""

    def __init__(self, *, images: bool = False, recompute: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body: nn.Module = nn.Conv2d(F, D, 1) if images else nn.Linear(F, D)
        self.head: nn.Module = nn.Conv2d(D, C, 1) if images else nn.Linear(D, C)
        self.recompute = recompute
        self.double()

    def features(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.body(inputs).relu()
        return features

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.features(inputs)
        made: Tensor = (
            checkpoint(self._scaled, features, use_reentrant=False) if self.recompute else self.head(features)
        )
        return made

    def _scaled(self, features: Tensor) -> Tensor:
        """More than the head, so that it is called again for what follows it."""
        scaled: Tensor = self.head(features).sinh().sin()
        return scaled


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    """Inputs of a shape (the batch axis first) and class indices (N,)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, dtype=torch.float64, generator=generator), torch.randint(
        C, shape[:1], generator=generator
    )


def assert_same_step(network: nn.Module, criterion: SoftLabelLoss, watched: Tensor, given: Tensor) -> None:
    """The loss and all gradients of a watched call are those of one with features."""
    parameters = [*network.parameters(), *criterion.parameters()]
    assert_exact(watched, given)
    for one, other in zip(
        torch.autograd.grad(watched, parameters), torch.autograd.grad(given, parameters), strict=True
    ):
        assert_exact(one, other)


@pytest.mark.parametrize("mode", WITH_FEATURES)
@pytest.mark.parametrize("training", [True, False])
def test_a_watched_call_is_the_call_with_features(mode: str, training: bool) -> None:
    network, criterion, (inputs, target) = Network().train(training), made(mode).train(training), batch(N, F)
    with criterion.watch(network.head):
        watched = criterion(network(inputs), target)
    features = network.features(inputs)
    assert_same_step(network, criterion, watched, criterion(network.head(features), target, features))


def test_terms_are_watched_too() -> None:
    network, criterion, (inputs, target) = Network(), made("emb"), batch(N, F)
    criterion.watch(network.head)
    watched = criterion.terms(network(inputs), target)
    features = network.features(inputs)
    given = criterion.terms(network.head(features), target, features)
    for one, other in zip(watched, given, strict=True):
        assert_exact(one, other)


@pytest.mark.parametrize("flattened", [False, True])
def test_a_linear_head_of_tokens_fits_logits_with_classes_second_and_rows(flattened: bool) -> None:
    network, criterion, (inputs, _) = Network(), made("emb"), batch(2, 3, F)
    target = torch.arange(6).reshape(2, 3) % C
    criterion.watch(network.head)
    logits = network(inputs)  # (2, 3, C)
    call = (logits.view(-1, C), target.view(-1)) if flattened else (logits.movedim(-1, 1), target)
    watched = criterion(*call)
    features = network.features(inputs).view(-1, D)
    assert_same_step(network, criterion, watched, criterion(network.head(features), target.view(-1), features))


@pytest.mark.parametrize("flattened", [False, True])
def test_a_convolution_as_head_fits_logits_of_every_pixel(flattened: bool) -> None:
    network, criterion, (inputs, _) = Network(images=True), made("emb"), batch(2, F, 2, 3)
    target = torch.arange(12).reshape(2, 2, 3) % C
    criterion.watch(network.head)
    logits = network(inputs)  # (2, C, 2, 3)
    if flattened:
        watched = criterion(logits.permute(0, 2, 3, 1).reshape(-1, C), target.flatten())
    else:
        watched = criterion(logits, target)
    features = network.features(inputs)
    assert_same_step(network, criterion, watched, criterion(network.head(features), target, features))


def test_what_is_recomputed_in_the_backward_pass_is_not_kept() -> None:
    network, criterion, (inputs, target) = Network(recompute=True), made("emb"), batch(N, F)
    forwards = []
    network.head.register_forward_hook(lambda *_: forwards.append(1))
    criterion.watch(network.head)
    losses = []
    for _ in range(3):
        losses.append(criterion(network(inputs), target))
        losses[-1].backward()
    assert len(forwards) == 6
    assert_exact(losses[2], losses[0])
    with pytest.raises(ValueError, match=r"no forward with gradients.*pass features"):
        criterion(torch.zeros(N, C), target)


def test_a_call_without_a_forward_says_pass_features() -> None:
    network, criterion, (inputs, target) = Network(), made("emb"), batch(N, F)
    criterion.watch(network.head)
    logits = network(inputs)
    criterion(logits, target)
    with pytest.raises(ValueError, match=r"no forward with gradients since the last call.*pass features: criterion\("):
        criterion(logits, target)


def test_two_unused_forwards_say_pass_features_and_are_forgotten() -> None:
    network, criterion, (inputs, target) = Network(), made("emb"), batch(N, F)
    criterion.watch(network.head)
    network(inputs)
    logits = network(inputs)
    with pytest.raises(ValueError, match=r"2 forwards since the last call.*pass features"):
        criterion(logits, target)
    criterion(network(inputs), target)


def test_a_forward_of_another_shape_says_pass_features_and_is_forgotten() -> None:
    network, criterion, (inputs, target) = Network(), made("emb"), batch(N, F)
    criterion.watch(network.head)
    with pytest.raises(ValueError, match=r"\(6, 4\), does not fit logits \(5, 5\): pass features"):
        criterion(network(inputs)[:5], target[:5])
    criterion(network(inputs), target)


def test_features_that_are_passed_are_taken_and_use_the_forward_up() -> None:
    network, criterion, (inputs, target) = Network(), made("emb"), batch(N, F)
    criterion.watch(network.head)
    given = torch.randn(N, D, dtype=torch.float64)
    logits = network(inputs)
    loss = criterion(logits, target, given)
    with pytest.raises(ValueError, match="no forward"):
        criterion(logits, target)
    criterion(network(inputs), target)
    assert_exact(loss, copy.deepcopy(criterion)(logits, target, given))


@pytest.mark.parametrize("mode", WITH_FEATURES)
def test_without_gradients_nothing_is_kept_and_the_loss_is_hard(mode: str) -> None:
    network, criterion, (inputs, target) = Network(), made(mode), batch(N, F)
    criterion.watch(network.head)
    with torch.no_grad():
        for _ in range(3):
            logits = network(inputs)
        assert criterion(logits, target) == criterion.hard(logits, target)
    with pytest.raises(ValueError, match="no forward with gradients"):
        criterion(logits, target)
    with torch.no_grad():
        features = network.features(inputs)
        assert criterion(logits, target, features) == criterion.terms(logits, target, features).total


def test_what_is_kept_is_detached_and_dropped_when_it_is_used() -> None:
    network, criterion, (inputs, target) = Network(), made("emb"), batch(N, F)
    kept: list[weakref.ref[Tensor]] = []
    network.head.register_forward_pre_hook(lambda _, arguments: kept.append(weakref.ref(arguments[0])))
    criterion.watch(network.head)
    logits = network(inputs).detach()
    gc.collect()
    assert kept[0]() is None  # the tensor with its graph is gone
    assert criterion._caught is not None
    assert criterion._caught._features is not None
    assert not criterion._caught._features.requires_grad
    criterion(logits, target)
    assert criterion._caught._features is None


def test_a_copy_of_the_model_feeds_nothing_and_copies_no_criterion() -> None:
    network, criterion, (inputs, target) = Network(), made("emb"), batch(N, F)
    criterion.watch(network.head)
    average = AveragedModel(network)
    pickled = pickle.loads(pickle.dumps(network))
    held = len(pickle.dumps(network)) - len(pickle.dumps(Network()))
    assert held < 300  # bytes: the name of the hook, no table
    logits = network(inputs)
    for other in (average, copy.deepcopy(network), pickled):
        other(inputs + 1)
        assert_exact(other(inputs), logits)
    features = network.features(inputs)
    assert_exact(criterion(logits, target), criterion(logits, target, features))


def test_files_of_a_watched_model_are_those_of_the_model() -> None:
    network, criterion, (inputs, target) = Network(), made("emb"), batch(N, F)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    criterion.watch(network.head)
    criterion(network(inputs), target)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    after = torch.load(file)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert criterion.state_dict().keys() == made("emb").state_dict().keys()


def test_a_copy_of_the_criterion_watches_nothing() -> None:
    network, criterion, (inputs, target) = Network(), made("emb"), batch(N, F)
    criterion.watch(network.head)
    logits = network(inputs)
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        with pytest.raises(ValueError, match=r"features.*got none"):
            other(logits, target)
    criterion(logits, target)


def test_the_head_does_not_keep_the_criterion() -> None:
    network, criterion, (inputs, _) = Network(), made("emb"), batch(N, F)
    handle = criterion.watch(network.head)
    references = weakref.ref(criterion), weakref.ref(criterion._caught)
    network(inputs)
    del criterion
    gc.collect()
    assert [reference() for reference in references] == [None, None]  # nor what was kept for it
    network(inputs)
    handle.remove()


def test_removing_ends_it_and_a_second_head_replaces_the_first() -> None:
    network, other, criterion, (inputs, target) = Network(), Network(), made("emb"), batch(N, F)
    criterion.watch(other.head)
    handle = criterion.watch(network.head)
    other(inputs)
    criterion(network(inputs), target)
    assert not other.head._forward_hooks
    handle.remove()
    handle.remove()
    assert not network.head._forward_hooks
    with pytest.raises(ValueError, match=r"features.*got none"):
        criterion(network(inputs), target)
    with torch.no_grad(), pytest.raises(ValueError, match=r"features.*got none"):
        criterion(network(inputs), target)


def test_one_head_feeds_two_criteria() -> None:
    network, one, other, (inputs, target) = Network(), made("emb"), made("emb"), batch(N, F)
    one.watch(network.head)
    other.watch(network.head)
    logits = network(inputs)
    assert_exact(one(logits, target), other(logits, target))


def test_a_head_of_another_width_or_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"receives 7 features.*num_features=4"):
        made("emb").watch(nn.Linear(7, C))
    with pytest.raises(ValueError, match="receives 7 features"):
        made("emb").watch(nn.Conv2d(7, C, 1))
    weight: Any = nn.Linear(D, C).weight
    with pytest.raises(ValueError, match=r"expected the module.*got Parameter"):
        made("emb").watch(weight)


@pytest.mark.parametrize(
    "mode", [mode.name for mode in MODES.values() if mode.name not in (*WITH_FEATURES, "emb-start")]
)
def test_modes_without_features_watch_nothing(mode: str) -> None:
    network, criterion, (inputs, target) = Network(), made(mode), batch(N, F)
    with criterion.watch(network.head) as handle:
        assert not network.head._forward_hooks
        logits = network(inputs)
        examples = index(mode, *range(len(target)))
        assert_exact(criterion(logits, target, **examples), made(mode)(logits, target, **examples))
    handle.remove()


def test_a_watched_head_may_still_be_fused() -> None:
    network, criterion, (inputs, target) = Network(), made("emb"), batch(N, F)
    assert isinstance(network.head, nn.Linear)
    criterion.watch(network.head)
    features = network.features(inputs)
    assert_exact(criterion.fused(features, target, network.head), criterion(network(inputs), target))
    network.head.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="it has hooks"):
        criterion.fused(features, target, network.head)


def test_under_a_compiler_features_are_passed() -> None:
    network, criterion, (inputs, target) = Network(), made("emb"), batch(N, F)
    criterion.watch(network.head)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    logits = compiled(inputs)
    with pytest.raises(ValueError, match=r"compiled.*pass features"):
        criterion(logits, target)

    @torch.compile(backend="eager", fullgraph=True)
    def step(inputs: Tensor, target: Tensor) -> Tensor:
        features = network.features(inputs)
        loss: Tensor = criterion(network.head(features), target, features)
        return loss

    features = network.features(inputs)
    assert_exact(step(inputs, target), criterion(network.head(features), target, features))


WORKER = """
from tests.losses.test_watch import C, D, N, Network, batch
from labelemb import LabelEmbeddingLoss
from torch.nn.parallel import DistributedDataParallel
torch.set_default_dtype(torch.float64)
network = Network()
torch.manual_seed(0)
criterion = LabelEmbeddingLoss(D, C)
inputs, target = (tensor[rank * 3 : rank * 3 + 3] for tensor in batch(N, 3))
criterion.watch(network.head)
model, loss_of = DistributedDataParallel(network), DistributedDataParallel(criterion)
for step in range(2):
    loss_of(model(inputs), target).backward()
parameters = [*network.parameters(), *criterion.parameters()]
torch.save([parameter.grad for parameter in parameters], {results!r} + str(rank))
dist.destroy_process_group()
"""


def test_two_ranks_have_the_gradients_of_one_process(tmp_path: Path) -> None:
    outputs_of_two_ranks(WORKER.format(results=str(tmp_path / "results-")), tmp_path)
    inputs, target = batch(N, F)
    torch.set_default_dtype(torch.float64)
    try:
        network = Network()
        torch.manual_seed(0)
        criterion = LabelEmbeddingLoss(D, C)
    finally:
        torch.set_default_dtype(torch.float32)
    features = network.features(inputs)
    criterion(network.head(features), target, features).backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"results-{rank}")
        for gradient, parameter in zip(found, [*network.parameters(), *criterion.parameters()], strict=True):
            assert parameter.grad is not None
            assert_exact(gradient, 2 * parameter.grad)
