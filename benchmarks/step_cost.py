"""What a training step costs with soft labels, against the baseline's, and against a straightforward loop.

    python -m benchmarks.step_cost [--networks digits,mnist-mlp,mnist-cnn,resnet8,resnet18,resnet18-64] [--threads N]
        [--mode emb] [--device cuda] [--precision bfloat16] [--loop] [--memory] [--output FILE.json] [batch_size=16 ...]

Steps are the engine's own, with its data path, over random images of the recipe's shape. The two modes are paired:
blocks of steps alternate in one process, every other pair the other way round; the ratio is the median over the pairs,
and its spread their quartiles. Also: the achieved floating-point rate as a share of a large matrix product's on the
same device; with --loop the time of benchmarks/straightforward_loop.py on the same images, pass by pass in turn; with
--memory the peak of each mode, in a process of its own (on a GPU of the allocator, else of the resident set).
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.measure import environment_of, in_own_process, in_turn, peak_bytes, synchronize, write_results
from benchmarks.straightforward_loop import ImageDataset, StraightforwardLoop
from torch.utils.flop_counter import FlopCounterMode

from labelemb.classify.image_data import ImageData, ImageSplit
from labelemb.classify.image_inputs import ImageInputs
from labelemb.classify.task import ClassifyTask
from labelemb.run_folder import RunFolder
from labelemb.settings.config import ClassifySettings
from labelemb.settings.recipe import load_recipe
from labelemb.training.device import choose_device
from labelemb.training.engine import Loop

LOOP_BATCHES, LOOP_WARM = 60, 10


class Network(NamedTuple):
    """A recipe, and the shape of its images and the number of its labels."""

    recipe: str
    image_shape: tuple[int, int, int]
    num_classes: int


NETWORKS = {
    "digits": Network("digits", (1, 8, 8), 10),
    "mnist-mlp": Network("mnist-mlp", (1, 28, 28), 10),
    "mnist-cnn": Network("mnist-cnn", (1, 28, 28), 10),
    "resnet8": Network("cifar10", (3, 32, 32), 10),
    "resnet18": Network("cifar100", (3, 32, 32), 100),
    "resnet18-64": Network("cifar100-sgd", (3, 32, 32), 100),
}


class Steps:
    """Training steps of one network in one mode, as `labelemb train` takes them."""

    def __init__(self, network: Network, mode: str, device: torch.device, overrides: list[str]) -> None:
        settings = load_recipe(network.recipe, overrides, {"mode": mode})
        assert isinstance(settings, ClassifySettings)
        self.settings, self.device = settings, device
        self.data = random_images(network, LOOP_BATCHES * settings.batch_size)
        folder = RunFolder(Path(tempfile.gettempdir()) / "step-cost")  # steps write nothing there
        self.task = ClassifyTask(settings, ImageInputs.of(self.data, settings.augment), device, folder)
        self.task.module.train()
        self.loop = Loop(self.task, settings, folder, lambda done, planned, message: None)
        self.batches = self._endless_batches()

    def seconds_per_step(self, num_steps: int) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        for batch in itertools.islice(self.batches, num_steps):
            self.loop.take_step(batch)
        synchronize(self.device)
        return (time.perf_counter() - start) / num_steps

    def _endless_batches(self) -> Iterator[tuple[Any, ...]]:
        for epoch in itertools.count():
            yield from self.task.batches(epoch, 0)

    def count_flops(self) -> int:
        """Floating-point operations of the network's matrix products in one step, forward and back."""
        inputs, _ = next(self.task.batches(0, 0))
        with FlopCounterMode(display=False) as counter:
            self.task.module.network(inputs)[0].sum().backward()
        return int(counter.get_total_flops())


def random_images(network: Network, num_images: int) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_images, *network.image_shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(network.num_classes, (num_images,), generator=generator)
    split = ImageSplit(images, labels)
    return ImageData(split, None, split, [str(label) for label in range(network.num_classes)], scale=255.0)


def paired_seconds(both: dict[str, Steps], num_blocks: int, block_seconds: float) -> dict[str, list[float]]:
    """Seconds a step of each mode in each block; first steps warm up and set how many steps make a block."""
    for steps in both.values():
        steps.seconds_per_step(20 if steps.device.type == "cuda" else 3)  # compiles and allocates
    slowest = max(steps.seconds_per_step(3) for steps in both.values())
    num_steps = max(1, round(block_seconds / slowest))
    return in_turn({mode: partial(steps.seconds_per_step, num_steps) for mode, steps in both.items()}, num_blocks)


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product, the best of five.

    In float32 on a GPU of TF32 products, as convolutions are by default.
    """
    size = 8192 if device.type == "cuda" else 2048
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    seconds = []
    as_set = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    torch.backends.cuda.matmul.allow_tf32 = as_set
    return float(2 * size**3 / min(seconds))


def straightforward_seconds(steps: Steps, num_rounds: int) -> tuple[list[float], list[float]]:
    """Seconds a step of our loop and of the straightforward one, in turn, with the same data and initial network."""
    augment = bool(steps.settings.augment.crop)
    inputs = ImageInputs.of(steps.data, steps.settings.augment)
    task = ClassifyTask(steps.settings, inputs, steps.device, steps.task.folder)  # fresh weights
    dataset = ImageDataset(steps.data.train, augment=augment)
    network = task.module.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    batch_size, device = steps.settings.batch_size, steps.device
    straightforward = StraightforwardLoop(network, task.module.criterion, dataset, batch_size, device)
    ours, theirs = [], []
    for _ in range(num_rounds):
        ours.append(steps.seconds_per_step(LOOP_BATCHES - LOOP_WARM))
        as_set, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False  # most tutorials leave it so
        theirs.append(straightforward.seconds_per_step(LOOP_WARM))
        torch.backends.cudnn.benchmark = as_set
    return ours, theirs


def memory_in_own_process(name: str, mode: str, options: argparse.Namespace) -> int:
    request = json.dumps([name, mode])
    arguments = ["--measure-memory", request, f"--device={options.device}", f"--threads={options.threads}"]
    arguments += [f"--precision={options.precision}", *options.overrides]
    return int(in_own_process("benchmarks.step_cost", *arguments))


def measure(name: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """One row: all about one network."""
    overrides = [f"precision={options.precision}", *options.overrides]
    modes = ("baseline", options.mode)
    both = {mode: Steps(NETWORKS[name], mode, device, overrides) for mode in modes}
    seconds = paired_seconds(both, options.blocks, options.block_seconds)
    medians = {mode: statistics.median(seconds[mode]) for mode in modes}
    ours = both[options.mode]
    batch_size, flops = ours.settings.batch_size, ours.count_flops()
    rate = matrix_product_rate(device, getattr(torch, options.precision))
    row: dict[str, Any] = {
        "network": name,
        "mode": options.mode,
        "batch_size": batch_size,
        "seconds": medians,
        "images_per_second": {mode: batch_size / median for mode, median in medians.items()},
        "ratio": quartiles([b / a for a, b in zip(seconds["baseline"], seconds[options.mode], strict=True)]),
        "gflop_per_image": flops / batch_size / 1e9,
        "matrix_product_gflops": rate / 1e9,
        "share_of_matrix_product": {mode: flops / median / rate for mode, median in medians.items()},
    }
    if options.loop:
        fast, slow = straightforward_seconds(ours, options.loop_rounds)
        row["straightforward_seconds"] = statistics.median(slow)
        row["speedup"] = quartiles([b / a for a, b in zip(fast, slow, strict=True)])
    if options.memory:
        row["peak_mb"] = {mode: memory_in_own_process(name, mode, options) / 1e6 for mode in modes}
    return row


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def print_row(row: dict[str, Any]) -> None:
    seconds, images, ratio, share = (
        row[key] for key in ("seconds", "images_per_second", "ratio", "share_of_matrix_product")
    )
    mode = row["mode"]
    print(
        f"{row['network']:12} batch {row['batch_size']:3}"
        f"  baseline {1e3 * seconds['baseline']:8.3f} ms {images['baseline']:9,.0f} images/s"
        f"  {mode} {1e3 * seconds[mode]:8.3f} ms {images[mode]:9,.0f} images/s"
        f"  ratio {ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})"
        f"  {row['gflop_per_image']:.4g} GFLOP an image, {share[mode]:.2f} of a matrix product's rate",
        flush=True,
    )
    if "speedup" in row:
        speedup = row["speedup"]
        print(
            f"{'':12} straightforward loop {1e3 * row['straightforward_seconds']:.3f} ms"
            f"  ours is {speedup['median']:.2f} times as fast ({speedup['low']:.2f}-{speedup['high']:.2f})"
        )
    if "peak_mb" in row:
        print(f"{'':12} peak memory " + ", ".join(f"{mode} {peak:,.0f} MB" for mode, peak in row["peak_mb"].items()))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="settings of the recipes, e.g. batch_size=16 compile=false")
    parser.add_argument("--networks", default="digits,mnist-mlp,mnist-cnn", help=", ".join(NETWORKS))
    parser.add_argument("--mode", default="emb", help="the mode that is held against the baseline")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--blocks", type=int, default=30, help="pairs of blocks")
    parser.add_argument("--block-seconds", type=float, default=0.25, help="length of a block, but at least one step")
    parser.add_argument("--loop", action="store_true", help="against the straightforward loop too")
    parser.add_argument("--loop-rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure peak memory too")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    if options.measure_memory is not None:
        name, mode = json.loads(options.measure_memory)
        overrides = [f"precision={options.precision}", *options.overrides]
        steps = Steps(NETWORKS[name], mode, device, overrides)
        steps.seconds_per_step(3)
        if device.type == "cuda":  # the first steps compile, and try convolutions that need more
            torch.cuda.reset_peak_memory_stats(device)
            steps.seconds_per_step(3)
        print(peak_bytes(device))
        return
    environment = environment_of("benchmarks.step_cost", device)
    rows = []
    for name in options.networks.split(","):
        rows.append(measure(name, device, options))
        print_row(rows[-1])
    write_results(options.output, {"environment": environment, "precision": options.precision, "rows": rows})


if __name__ == "__main__":
    main()
