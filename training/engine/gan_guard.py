"""The guard of GANs: it reads a run's log line by line and warns where trouble begins.

Four kinds of trouble: samples that are all alike, within the whole batch or within each class; a discriminator that
tells every sample from data that it is far from; samples that stay far from the data, as where modes are missing; and
samples between the modes of a known mixture that the discriminator hardly tells from data. The last may pass after
thousands of steps: no run is stopped for it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Line = Mapping[str, float | None]
Numbers = dict[str, float]

SPAN, SHORT = 150, 50
"""Steps over which the recent past fades, one whole span ago counting 1/e; the short span is that of the distance."""
BEGINS, ENDS = 0.9, 0.3
"""Share of the recent past in which signs are seen, at which a trouble begins and at which it is over."""
ALIKE = 0.1
"""Variance of collapsed samples over that of real ones, at most."""
FAR = 0.25
"""Energy distance of samples that are far from the data, over that of one real sample repeated for ever, at least."""
NEAR = 0.08
"""The same of samples that a discriminator need not overfit to tell from data, at least."""
SURE = 0.98
"""Share of pairs that a discriminator which has won puts in the right order, at least."""
STRAY = 0.1
"""Share of samples within three sigma of a mode of a known mixture, at most, where they lie between the modes."""
BLIND = 0.7
"""Share of pairs in the right order, at most, where a discriminator hardly tells samples from data."""
LOWER = 0.95
"""Energy distance over the lowest before it at which the generator is said to be learning, at most."""

NEEDED = {"energy_distance", "real_variance", "sample_variance", "rank_accuracy", "D(x)", "D(G(z))"}
"""Numbers without which a line of the log shows nothing."""

SLOW, FAST = 1e-5, 1e-4
"""Learning rates below and above which another is recommended."""


@dataclass(frozen=True)
class Trouble:
    """One kind of trouble: whether a line of the log shows it, its message, the fields to change, whether a
    generator that still comes nearer to the data is excused, and whether a run may be stopped for it: some pass."""

    seen: Callable[[Numbers, Any], bool]
    says: Callable[[Numbers], str]
    cures: tuple[str, ...]
    excused: bool = True
    stops: bool = True


def guard(
    memory: dict[str, Any], given: Line, settings: Any, points: bool = False
) -> tuple[dict[str, Any], str | None]:
    """Return the memory with a given line of the log in it, and a warning if a trouble begins here.

    For each trouble the memory holds the share of recent steps that showed its signs, an exponential mean over SPAN
    steps that starts at 0. A line counts for SPAN steps at most, so three of them at least are needed for a verdict.
    Lines of the learning rate's warm-up do not count, nor do those without numbers of the training, as in evaluations
    and in micro-batches of 1. None in a stored line and NaN or infinity in a live one are the same: no number. While
    the energy distance reaches new lows, only the discriminator can be in the way: a slow generator is not a collapsed
    one.
    """
    # leave out lines without numbers of the training
    line = {name: value for name, value in given.items() if value is not None and math.isfinite(value)}
    if not line.keys() >= NEEDED or line["step"] <= settings.warmup_steps:
        return memory, None
    # weigh this line, and decide whether the energy distance still falls
    steps = min(SPAN, line["step"] - memory.get("step", settings.warmup_steps))
    weight = 1 - math.exp(-steps / SPAN)
    recent = memory.get("distance", distance(line))
    recent += (1 - math.exp(-steps / SHORT)) * (distance(line) - recent)
    lowest = memory.get("lowest", math.inf)
    learning = recent < LOWER * lowest
    # for each trouble: update the share of recent steps with its signs, and decide
    shares, standing, warnings = dict[str, float](), list[str](), list[str]()
    for name, trouble in TROUBLES.items():
        before = memory.get("shares", {}).get(name, 0.0)
        seen = trouble.seen(line, settings) and not (learning and trouble.excused)
        shares[name] = before + weight * (seen - before)
        stood = name in memory.get("standing", ())
        if shares[name] > (ENDS if stood else BEGINS):
            standing.append(name)
            explained = name in ("far", "between") and len(standing) > 1           # the others say why
            if not stood and not explained and (trouble.stops or not settings.stop_on_collapse):
                warnings.append(f"{trouble.says(line)}. {advice(trouble.cures, settings, points)}")
    memory = {"step": line["step"], "distance": recent, "lowest": recent if learning else lowest, "shares": shares}
    return memory | {"standing": standing}, "; ".join(warnings) or None


def advice(fields: tuple[str, ...], settings: Any, points: bool) -> str:
    """Return which of these fields to change, and to which values: only to such as the run does not use."""
    cures = [cure for field in fields if (cure := _cure(field, settings, points))]
    return f"Try {', or '.join(cures)}" if cures else f"Try --batch-size {2 * settings.batch_size}, or another --seed"


def _cure(field: str, s: Any, points: bool) -> str | None:
    """Return the option that changes a field; None where the run has that value, or would not gain from it."""
    if field.endswith("learning_rate"):
        return _other_rate(field, getattr(s, field))
    # list each option, and whether it may help
    critic, judged = s.loss in ("wasserstein", "wasserstein_gp"), s.loss != "began"     # by one logit for each sample
    options = {
        "loss": ("--loss wasserstein_gp", s.loss != "wasserstein_gp"),
        "saturating": ("--loss non_saturating", s.loss == "minimax"),
        "generator_loss": ("--generator-loss non_saturating", s.generator_loss == "minimax"),
        "gamma": ("--gamma 0.7", not judged and s.gamma < 0.7),
        "penalty": ("--r1 0.1", judged and not (s.r1 or s.gradient_penalty or critic)),
        "pack": ("--pack 4", judged and s.pack == 1 and s.batch_size % (4 * max(1, s.minibatch_stddev)) == 0),
        "discriminator_steps": ("--discriminator-steps 1", s.discriminator_steps > 1 and not critic),
        "frequencies": ("--frequencies 32", judged and not s.frequencies),
        "latent_dim": ("--latent-dim 64", s.latent_dim < 16),
    }
    # replace options that depend on the data and the loss
    if points:
        options["loss"] = ("--loss relativistic --r1 1 --r2 1", s.loss != "relativistic")
    if s.loss == "wasserstein_gp":
        options["penalty"] = ("--gradient-penalty 10", not s.gradient_penalty)
    option, helps = options[field]
    return option if helps else None


def _other_rate(field: str, rate: float) -> str | None:
    """Return the option for another learning rate: a higher one below 1e-5, a lower one above 1e-4; else None."""
    name = f"--{field.replace('_', '-')}"
    if rate < SLOW:
        return f"{name} 2e-4"
    if rate > FAST:
        return f"{name} {rate / 4:.2g}"
    return None


def distance(line: Numbers) -> float:
    """Return the energy distance over the root mean square distance of real samples: 0 where both are alike, about 1
    for one real sample repeated for ever."""
    spread = math.sqrt(2 * max(0.0, line["real_variance"]))
    return line["energy_distance"] / spread if spread else 0.0


def alike(line: Numbers, kind: str = "") -> bool:
    """Return whether samples vary much less than real ones do: all of them, or `class_` those of one class."""
    real, generated = line.get(f"real_{kind}variance", 0.0), line.get(f"sample_{kind}variance", math.inf)
    return generated < ALIKE * real


def _sure(line: Numbers, s: Any) -> bool:
    """Return whether the discriminator ranks nearly all pairs well; a Wasserstein critic should, and has not won."""
    return s.loss not in ("wasserstein", "wasserstein_gp") and line["rank_accuracy"] > SURE


def _stray(line: Numbers) -> bool:
    """Return whether samples lie between the modes of a known mixture and the discriminator hardly sees it."""
    return line.get("near_modes", 1.0) < STRAY and line["rank_accuracy"] < BLIND


def _collapsed(line: Numbers) -> str:
    return (f"the generator has collapsed: its samples vary by {line['sample_variance']:.2g}, real ones by "
            f"{line['real_variance']:.2g}")  # fmt: skip


def _collapsed_classes(line: Numbers) -> str:
    share = line["sample_class_variance"] / line["real_class_variance"]
    return f"the generator has collapsed in its classes: samples of a class vary {share:.2g} times as much as real ones"


def _won(line: Numbers) -> str:
    return (f"the discriminator has won: it ranks {line['rank_accuracy']:.1%} of real samples above generated ones "
            f"(D(x) = {line['D(x)']:.3g}, D(G(z)) = {line['D(G(z))']:.3g}), and these are far from the data: energy "
            f"distance {distance(line):.2f}, where real samples have 0 and one of them repeated 1")  # fmt: skip


def _far(line: Numbers) -> str:
    return (f"the samples stay far from the data, as where modes are missing: energy distance {distance(line):.2f}, "
            "where real samples have 0 and one of them repeated 1")  # fmt: skip


def _between(line: Numbers) -> str:
    return (f"the samples lie between the modes so far: {line['near_modes']:.1%} are within three sigma of one, and "
            f"the discriminator ranks only {line['rank_accuracy']:.1%} of real samples above others")  # fmt: skip


TROUBLES = {
    "collapsed": Trouble(
        lambda line, s: alike(line), _collapsed, ("loss", "gamma", "pack", "penalty", "learning_rate")
    ),
    "collapsed classes": Trouble(
        lambda line, s: alike(line, "class_"), _collapsed_classes, ("latent_dim", "pack", "penalty"), excused=False
    ),
    "won": Trouble(
        lambda line, s: _sure(line, s) and distance(line) > NEAR, _won,
        ("saturating", "generator_loss", "penalty", "discriminator_steps", "discriminator_learning_rate"),
        excused=False,
    ),
    "far": Trouble(lambda line, s: distance(line) > FAR, _far, ("loss", "pack", "penalty", "learning_rate")),
    "between": Trouble(
        lambda line, s: _stray(line), _between, ("loss", "frequencies", "learning_rate"), excused=False, stops=False,
    ),
}  # fmt: skip
