"""The command line: `hfgen train RECIPE ...`, `hfgen sample MODEL ...` and `hfgen publish MODEL REPO_ID`."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from hfgen.errors import ConfigError, exit_code_of

NAMES = (
    "autoencoder", "autoencoder_kl", "classifier", "ddpm", "gan", "latent_diffusion", "score_sde", "translation", "vae",
)
RECIPES = {name: f"hfgen.training.{name}" for name in NAMES}
RECIPE_HELP = f"One of: {', '.join(RECIPES)}"


def print_samplers(wanted: bool) -> None:
    """Print the table of samplers and end, if that is wanted."""
    if wanted:
        from hfgen.schedulers.samplers import described

        typer.echo(described())
        raise typer.Exit(0)


app = typer.Typer(
    name="hfgen", help="Train, judge, share and sample generative models.", no_args_is_help=True, add_completion=False
)


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
    raise typer.Exit(import_module(RECIPES[recipe]).main(context.args))


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
            from hfgen.generated import Wanted, push_samples

            wanted = Wanted(model, number, num_steps, seed, label, batch_size, sampler, eta, **told)
            typer.echo(push_samples(wanted, push_dataset, output, public))
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
) -> None:
    """Upload a model with its card to the Hub, read it back and compare. Log in first: hf auth login."""

    def command() -> int:
        from hfgen.generated import is_dataset
        from hfgen.generated import push_dataset as publish_dataset
        from hfgen.publish import publish as publish_model

        send = publish_dataset if is_dataset(model) else publish_model
        typer.echo(send(model, repo_id, public=public, message=message))
        return 0

    raise typer.Exit(exit_code_of(command))


def main() -> None:
    """Run the command line."""
    app()
