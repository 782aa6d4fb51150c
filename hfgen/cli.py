"""The command line: `hfgen train RECIPE ...` and `hfgen sample MODEL ...`."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from hfgen.errors import exit_code_of

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
    output: Annotated[Path, typer.Option("--output", "-o", help="A grid (FILE.png), or a folder of images.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Samples.")] = 16,
    num_steps: Annotated[int | None, typer.Option(help="Sampling steps; by default the model's.")] = None,
    seed: Annotated[int, typer.Option(help="Sample i is a function of the model, this and i.")] = 0,
    label: Annotated[int | None, typer.Option(help="Class, for a class-conditional model.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples that are made at once.")] = 64,
    sampler: Annotated[str | None, typer.Option(help="Generation method; by default the model's.")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of --sampler ddim, from 0 to 1.")] = None,
    list_samplers: Annotated[
        bool, typer.Option("--list-samplers", help="Show the methods, and end.", callback=print_samplers, is_eager=True)
    ] = False,
) -> None:
    """Generate images (or 2-D points) with a trained model."""
    from hfgen.sampling import write_samples

    def command() -> int:
        write_samples(model, output, number, num_steps, seed, label, batch_size, sampler, eta)
        return 0

    raise typer.Exit(exit_code_of(command))


def main() -> None:
    """Run the command line."""
    app()
