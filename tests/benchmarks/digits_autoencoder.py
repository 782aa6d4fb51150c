"""Autoencoders on held-out digits: noise removed and gaps filled in, and what codes are worth with few labels.

    python -m tests.benchmarks.digits_autoencoder [--seeds 0 1 2] [--figure restored.png]

Trained on the first 80 % of the digits, judged on the rest. Restoring: PSNR of the restored images, and of the
corrupted ones. Transfer: a denoising autoencoder sees the images without labels; then classifiers get 10, 50 or 200
labels (the same number of each class, drawn by the seed) in four ways:

- `encode`: its encoder and one linear layer, which start from the codes e(x), all trained on;
- `scratch`: the same network from random weights;
- `codes`: logistic regression on the codes, the encoder left as it is;
- `PCA`: logistic regression on as many principal components of the same images.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from hfgen import AutoencoderPipeline
from hfgen.data import load_dataset
from tests.benchmarks.harness import Row, collect, table, train
from tests.training.runs import metrics

HALVES = "--dataset digits --split train[:80%] --eval-split train[80%:]"
KINDS = ("gaussian", "salt_pepper", "patch")
LABELS = (10, 50, 200)
STEPS = 300


def restore(job: Row, folder: Path, threads: int) -> Row:
    """Train on one kind of corruption; return PSNR in decibels of restored and of corrupted held-out digits."""
    out = folder / f"{job['corruption']}-{job['seed']}"
    fields = f"{HALVES} --corruption {job['corruption']} --threads {threads}"
    seconds = train("autoencoder", out, job["seed"], fields.split())
    last = metrics(out)[-1]
    restored, given = last["eval_psnr"], last["eval_psnr_corrupted"]
    return {"seconds": seconds, "psnr": restored, "corrupted": given, "gain": restored - given}


def transfer(job: Row, folder: Path) -> Row:
    """Return the accuracy on held-out digits of the four ways for a number of labels and a seed."""
    pipeline = AutoencoderPipeline.from_pretrained(folder / f"gaussian-{job['seed']}")
    seen, unseen = (load_dataset("digits", split=half) for half in ("train[:80%]", "train[80%:]"))
    x, y, x_test, y_test = seen.tensor(), seen.labels(), unseen.tensor(), unseen.labels()
    assert y is not None and y_test is not None
    chosen = balanced(y, job["labels"], job["seed"])
    encoder = pipeline.autoencoder.encoder
    codes, codes_test = (pipeline.encode(images / 2 + 0.5) for images in (x, x_test))
    pca = PCA(codes.shape[1], random_state=0).fit(x.flatten(1).numpy())
    parts, parts_test = (torch.from_numpy(pca.transform(images.flatten(1).numpy())) for images in (x, x_test))
    return {
        "encode": fine_tuned(copy.deepcopy(encoder), x[chosen], y[chosen], x_test, y_test, job["seed"]),
        "scratch": fine_tuned(fresh(encoder, job["seed"]), x[chosen], y[chosen], x_test, y_test, job["seed"]),
        "codes": regression(codes[chosen], y[chosen], codes_test, y_test),
        "PCA": regression(parts[chosen], y[chosen], parts_test, y_test),
    }


def balanced(labels: Tensor, number: int, seed: int) -> Tensor:
    """Return which `number` items are given with their labels: the same number of each of ten classes."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == digit][: number // 10] for digit in range(10)])


def fresh(encoder: nn.Module, seed: int) -> nn.Module:
    """Return the same network with random weights."""
    encoder = copy.deepcopy(encoder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in encoder.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    return encoder


def fine_tuned(encoder: nn.Module, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, seed: int) -> float:
    """Return the accuracy of the encoder and a linear layer after full-batch Adam on the labelled images.

    The linear layer starts at zero, so that what differs between the ways is the encoder alone.
    """
    with torch.no_grad():
        head = nn.Linear(encoder(x).shape[1], 10)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    net = nn.Sequential(encoder, head)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        return float((net(x_test).argmax(1) == y_test).double().mean())


def regression(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Return the accuracy of logistic regression on standardised features."""
    scaler = StandardScaler().fit(x.numpy())
    model = LogisticRegression(max_iter=5000).fit(scaler.transform(x.numpy()), y.numpy())
    return float(model.score(scaler.transform(x_test.numpy()), y_test.numpy()))


def picture(folder: Path, seed: int, target: Path) -> None:
    """Save the last grids of the three restorers, one under the other."""
    from PIL import Image

    grids = [Image.open(max((folder / f"{kind}-{seed}" / "samples").glob("*.png"))) for kind in KINDS]
    sheet = Image.new("L", (max(g.width for g in grids), sum(g.height for g in grids) + 8 * (len(grids) - 1)), 255)
    top = 0
    for one in grids:
        sheet.paste(one, (0, top))
        top += one.height + 8
    sheet.save(target)


def main() -> None:
    """Print a row for each run, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parallel", type=int, default=1, help="Runs side by side.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of each run.")
    parser.add_argument("--keep", type=Path, help="Folder for the runs; a temporary one by default.")
    parser.add_argument("--figure", type=Path, help="File for restored digits of the first seed.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        jobs: list[Row] = [{"corruption": kind, "seed": seed} for seed in options.seeds for kind in KINDS]
        rows = collect(jobs, lambda job: restore(job, folder, options.threads), None, options.parallel)
        few: list[Row] = [{"labels": number, "seed": seed} for number in LABELS for seed in options.seeds]
        accuracies = collect(few, lambda job: transfer(job, folder), None, 1)
        if options.figure:
            picture(folder, options.seeds[0], options.figure)
    print(table(rows, ["corruption"], ["psnr", "corrupted", "gain", "seconds"]))
    print(table(accuracies, ["labels"], ["encode", "scratch", "codes", "PCA"]))


if __name__ == "__main__":
    main()
