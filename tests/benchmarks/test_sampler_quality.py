"""Every sampler on a model that was trained briefly on real digits by the default recipe."""

from pathlib import Path

import torch

from hfgen.schedulers.samplers import SAMPLERS
from tests.benchmarks.harness import train
from tests.benchmarks.sampler_quality import broken_beyond, quality, reference, report

FIELDS = "--dataset digits --max-steps 250 --block-out-channels 16 32 --layers-per-block 1 --save-every 0"


def test_no_sampler_breaks_images_of_a_model_that_was_trained_briefly(tmp_path: Path) -> None:
    train("score_sde", tmp_path / "run", 0, [*FIELDS.split(), "--threads", "1"])
    real = reference(tmp_path / "run").tensor().flatten(1)
    rows = []
    for name, sampler in SAMPLERS.items():
        job = {"run": str(tmp_path / "run"), "guidance": None, "sampler": name, "seed": 0, "number": 96}
        job["steps"] = min(sampler.steps, 25)
        rows.append({**job, **quality(job, real, broken_beyond(real))})
    broken = {row["sampler"]: row["broken"] for row in rows}
    assert all(count <= 4 for count in broken.values()), broken              # 60 and more where x_0 is not clipped
    best = min(row["frechet"] for row in rows)
    ratios = {row["sampler"]: row["frechet"] / best for row in rows}
    assert all(ratio < 2 for ratio in ratios.values()), ratios               # 10 and more where x_0 is not clipped
    assert report(rows).count("\n") == len(SAMPLERS) + 1


def test_saturated_noise_counts_as_broken_and_real_images_do_not() -> None:
    real = torch.rand(200, 64, generator=torch.Generator().manual_seed(0)) * 0.2 - 1
    limit = broken_beyond(real)
    noise = torch.randint(0, 2, (20, 64), generator=torch.Generator().manual_seed(1)).float() * 2 - 1
    distances = torch.cdist(torch.cat([real[:20] + 0.01, noise]), real).min(1).values
    assert (distances > limit).tolist() == [False] * 20 + [True] * 20
