"""The command line: `hfgen train`, `sample`, `evaluate`, `compare` and `publish`."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hfgen.errors import ConfigError, exit_code_of
from hfgen.memory import keep_memory

NAMES = (
    "autoencoder", "autoencoder_kl", "classifier", "ddpm", "gan", "latent_diffusion", "score_sde", "translation", "vae",
)
RECIPES = {name: f"hfgen.training.{name}" for name in NAMES}
RECIPE_HELP = f"One of: {', '.join(RECIPES)}"

METRICS_HELP = "Of frechet,kid,prdc,diversity,likelihood,usefulness,privacy,cost; by default all but usefulness."
NUMBER_HELP = "Samples; by default as many as there are real images, at most 10,000."
SOURCE_HELP = "Where pip installs hfgen from, as card and shims say. Default: none, since the name on PyPI is not ours."
STOCK_HELP = "stock:MODEL is read by diffusers itself"
SAMPLER_HELP = "Sampler. Default: dpmpp_2m for diffusion models of hfgen; ddpm asks for ancestral sampling."
IMAGES_HELP = "Real images for a diffusion model's likelihood. Default: as many of 64 as --likelihood-seconds allow."
SECONDS_HELP = "Time for a diffusion model's bound, and as much for its likelihood by the ODE."
EVALUATION_HELP = "FILE.json; by default evaluation.json in the run folder, which the model's card then shows."


def print_samplers(wanted: bool) -> None:
    """Print the table of samplers and end, if that is wanted."""
    if wanted:
        from hfgen.schedulers.samplers import described

        typer.echo(described())
        raise typer.Exit(0)


app = typer.Typer(name="hfgen", no_args_is_help=True, add_completion=False)


@app.callback()
def prepare() -> None:
    """Train, judge, share and sample generative models."""
    keep_memory()


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="[--FIELD VALUE ...]",
)
def train(context: typer.Context, recipe: Annotated[str, typer.Argument(help=RECIPE_HELP)] = "--help") -> None:
    """Train a model in this process. `hfgen train RECIPE --help` lists the fields.

    On several processes: accelerate launch -m hfgen.training.RECIPE --FIELD VALUE ...
    """
    if recipe in ("--help", "-h"):
        typer.echo(context.get_help())
        raise typer.Exit(0)
    if recipe not in RECIPES:
        typer.echo(f"error: there is no recipe {recipe!r}; there are {', '.join(RECIPES)}", err=True)
        raise typer.Exit(2)
    if not {"--help", "-h"} & set(context.args):
        typer.echo(f"hfgen train {recipe}: starting", err=True)      # imports take seconds
    from hfgen.training.engine.run import main as run

    raise typer.Exit(run(import_module(RECIPES[recipe]).RECIPE, context.args))


@app.command()
def sample(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder or a Hub id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A grid (FILE.png), or a folder of images.")
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Samples.")] = 16,
    num_steps: Annotated[int | None, typer.Option(help="Sampling steps; by default the model's.")] = None,
    seed: Annotated[int, typer.Option(help="Sample i is a function of the model, this and i.")] = 0,
    label: Annotated[int | None, typer.Option(help="Class, for a class-conditional model.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text, for a model that reads captions.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How strongly class or text guide; 1: not. By default 3, where it can.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Text that guidance leads away from.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples that are made at once.")] = 64,
    sampler: Annotated[str | None, typer.Option(help="Generation method; by default the model's.")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of --sampler ddim, from 0 to 1.")] = None,
    push_dataset: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Publish the images on the Hub, as a dataset in parquet.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the dataset public, not private.")] = False,
    list_samplers: Annotated[
        bool, typer.Option("--list-samplers", help="Show the methods, and end.", callback=print_samplers, is_eager=True)
    ] = False,
) -> None:
    """Generate images (or 2-D points) with a trained model."""
    def command() -> int:
        told: dict[str, Any] = {"prompt": prompt, "guidance_scale": guidance_scale, "negative_prompt": negative_prompt}
        if push_dataset is not None:
            from hfgen.sample_dataset import SampleRequest, push_samples

            request = SampleRequest(model, number, num_steps, seed, label, batch_size, sampler, eta, **told)
            typer.echo(push_samples(request, push_dataset, output, public))
            return 0
        from hfgen.sampling import write_samples

        if output is None or public:
            raise ConfigError("give -o FILE|DIR, or --push-dataset USER/NAME and with it perhaps --public")
        write_samples(model, output, number, num_steps, seed, label, batch_size, sampler, eta, **told)
        return 0

    raise typer.Exit(exit_code_of(command))


@app.command()
def publish(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, a Hub id, or a folder of a dataset.")],
    repo_id: Annotated[str, typer.Argument(help="Where to: user/name or organisation/name.")],
    public: Annotated[bool, typer.Option("--public", help="Make it public; by default it is private.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit's first line.")] = None,
    source: Annotated[
        str | None, typer.Option(metavar="URL|REQUIREMENT", envvar="HFGEN_SOURCE", help=SOURCE_HELP)
    ] = None,
) -> None:
    """Upload a model with its card to the Hub, read it back and compare. Log in first: hf auth login."""

    def command() -> int:
        from hfgen.hub.publish import publish as publish_model
        from hfgen.sample_dataset import is_dataset
        from hfgen.sample_dataset import push_dataset as publish_dataset

        if is_dataset(model):
            typer.echo(publish_dataset(model, repo_id, public=public, message=message))
        else:
            typer.echo(publish_model(model, repo_id, public=public, message=message, source=source))
        return 0

    raise typer.Exit(exit_code_of(command))


class Judging(TyperCommand):
    """A command whose --resolution takes one number or two, as that of training does."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Return what is left of the words, the numbers after --resolution taken as one."""
        words = list(args)
        for i, word in enumerate(words):
            if word == "--resolution" and all(number.isdigit() for number in words[i + 1 : i + 3]) and words[i + 2 :]:
                words[i + 1 : i + 3] = [" ".join(words[i + 1 : i + 3])]
        return super().parse_args(ctx, words)


def size_of(text: str) -> int | tuple[int, ...]:
    """Return the side, or height and width, that are written in a text."""
    numbers = tuple(int(word) for word in text.split())
    if len(numbers) not in (1, 2):
        raise ValueError(text)
    return numbers[0] if len(numbers) == 1 else numbers


Dataset = Annotated[str, typer.Option(help="Real data, as for hfgen train.")]
Split = Annotated[str, typer.Option(help="Split of it, such as train[:80%].")]
Metrics = Annotated[str | None, typer.Option(help=METRICS_HELP)]
NumSamples = Annotated[int | None, typer.Option(min=1, help=NUMBER_HELP)]
Features = Annotated[str, typer.Option(help="Extractor: pixels, classifier:MODEL, dinov2, clip or inception.")]
Classifier = Annotated[str | None, typer.Option(help="Classifier that sees the classes of samples.")]
HeldOut = Annotated[str | None, typer.Option(help="Real data that was not trained on.")]
HeldOutSplit = Annotated[str | None, typer.Option(help="Split of these, or of --dataset.")]
NumSteps = Annotated[int | None, typer.Option(help="Sampling steps. Default: those of the sampler.")]
Guidance = Annotated[float, typer.Option(help="How strongly class or text guide; 1: not.")]
Method = Annotated[str | None, typer.Option(help=SAMPLER_HELP)]
Seed = Annotated[int, typer.Option(help="Sample i is a function of the model, this and i.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples that are made at once.")]
Resamples = Annotated[int | None, typer.Option(min=2, help="Of the bootstrap; by default 1,000, or fewer.")]
LikelihoodImages = Annotated[int | None, typer.Option(min=2, help=IMAGES_HELP)]
LikelihoodSeconds = Annotated[float, typer.Option(help=SECONDS_HELP)]
Neighbours = Annotated[int, typer.Option(min=1, help="k of precision, recall, density and coverage.")]
ImportanceSamples = Annotated[int, typer.Option(min=1, help="Draws of z for each image's likelihood, of VAEs.")]
ClassifierSteps = Annotated[int, typer.Option(min=1, help="Of each classifier that usefulness trains.")]
Resolution = Annotated[
    Any, typer.Option(parser=size_of, metavar="SIDE | HEIGHT WIDTH", help="Of the real images; by default as they are.")
]
Channels = Annotated[int | None, typer.Option(help="Their channels: 1, 3 or 4.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the images; found by its type.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels; none: take them as unlabelled.")]
CaptionColumn = Annotated[str | None, typer.Option(help="Column of captions, for models that read them.")]
Background = Annotated[str, typer.Option(help="Colour under transparent pixels.")]
SkipBadImages = Annotated[bool, typer.Option("--skip-bad-images", help="Leave out files that cannot be decoded.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Compute everything anew, and keep nothing.")]
JUDGED = (
    "resolution", "channels", "image_column", "label_column", "caption_column", "background", "skip_bad_images",
)  # fmt: skip
"""The fields of `evaluate` and `compare` that say how the reference data are read."""


@app.command(cls=Judging)
def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help=f"A run folder, a model folder or a Hub id; {STOCK_HELP}.")],
    dataset: Dataset,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=EVALUATION_HELP)] = None,
    split: Split = "train",
    metrics: Metrics = None,
    num_samples: NumSamples = None,
    features: Features = "pixels",
    classifier: Classifier = None,
    held_out: HeldOut = None,
    held_out_split: HeldOutSplit = None,
    num_steps: NumSteps = None,
    guidance_scale: Guidance = 1.0,
    sampler: Method = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    resamples: Resamples = None,
    likelihood_images: LikelihoodImages = None,
    likelihood_seconds: LikelihoodSeconds = 15.0,
    neighbours: Neighbours = 5,
    importance_samples: ImportanceSamples = 100,
    classifier_steps: ClassifierSteps = 500,
    resolution: Resolution = None,
    channels: Channels = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    caption_column: CaptionColumn = None,
    background: Background = "white",
    skip_bad_images: SkipBadImages = False,
    no_cache: NoCache = False,
) -> None:
    """Measure a model against real data: quality, diversity, likelihood, memorisation, cost; intervals and floors.

    What was computed is kept in HFGEN_CACHE (~/.cache/hfgen). Several processes share the work:
    accelerate launch -m hfgen.cli evaluate MODEL --dataset D
    """
    given, columns = judged(context)

    def command() -> int:
        from hfgen.evaluation.api import evaluate_to

        text = evaluate_to(model, dataset, output, cache=not no_cache, **given, **columns)
        typer.echo(text, nl=bool(text))
        return 0

    raise typer.Exit(exit_code_of(command))


@app.command(cls=Judging)
def compare(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(help=f"Run folders, model folders or Hub ids; {STOCK_HELP}.")],
    dataset: Dataset,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.md, report.json and pictures.")],
    split: Split = "train",
    metrics: Metrics = None,
    num_samples: NumSamples = None,
    features: Features = "pixels",
    classifier: Classifier = None,
    held_out: HeldOut = None,
    held_out_split: HeldOutSplit = None,
    num_steps: NumSteps = None,
    guidance_scale: Guidance = 1.0,
    sampler: Method = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    resamples: Resamples = None,
    likelihood_images: LikelihoodImages = None,
    likelihood_seconds: LikelihoodSeconds = 15.0,
    neighbours: Neighbours = 5,
    importance_samples: ImportanceSamples = 100,
    classifier_steps: ClassifierSteps = 500,
    resolution: Resolution = None,
    channels: Channels = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    caption_column: CaptionColumn = None,
    background: Background = "white",
    skip_bad_images: SkipBadImages = False,
    no_cache: NoCache = False,
) -> None:
    """Put models side by side, by the same data, seed and features, in a report with plots. Nothing is trained.

    --num-steps, --guidance-scale and --sampler reach the models that take them.
    """
    given, columns = judged(context)

    def command() -> int:
        from hfgen.evaluation.api import compare_to

        text = compare_to(models, dataset, output, cache=not no_cache, data_options=columns, **given)
        typer.echo(text, nl=bool(text))
        return 0

    raise typer.Exit(exit_code_of(command))


def judged(context: typer.Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the judge that a command line gives, and how the real data are read."""
    apart = ("model", "models", "dataset", "output", "no_cache", *JUDGED)
    settings = {name: value for name, value in context.params.items() if name not in apart}
    return settings, {name: context.params[name] for name in JUDGED}


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    from hfgen import cli

    cli.main()
