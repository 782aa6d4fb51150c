"""The command line: `hfgen train`, `sample`, `evaluate`, `compare`, `publish` and `script`.

Each command is a dataclass, whose fields are the options and whose field docstrings are the help texts; tyro parses it.
Libraries that load slowly are imported when a command runs.
"""

import sys
from contextlib import suppress
from dataclasses import dataclass, make_dataclass
from functools import reduce
from importlib import import_module
from operator import or_
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from hfgen import __version__
from hfgen.checks import check_dataset, check_model
from hfgen.errors import ConfigError, exit_code_of
from hfgen.evaluation.settings import STOCK, EvaluationArguments
from hfgen.logging import print_warnings_in_one_line
from hfgen.memory import keep_memory
from hfgen.registry import RECIPES
from hfgen.sampling.request import SampleRequest, check_output

HELP = ("-h", "--help")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model in this process. `hfgen train RECIPE --help` lists the fields.

    On several processes: accelerate launch -m hfgen.training.RECIPE --FIELD VALUE ...
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE [--FIELD VALUE ...]", help=f"One of {', '.join(RECIPES)}.")]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Generate images (or 2-D points) with a trained model."""

    output: Annotated[Path | None, arg(aliases=("-o",))] = None
    """A grid (FILE.png), an array (FILE.npy), or a folder of images. Default: MODEL-samples.png in this folder."""
    push_dataset: Annotated[str | None, arg(metavar="USER/NAME")] = None
    """Publish the images on the Hub, as a dataset in parquet."""
    public: bool = False
    """Make the dataset public. Default: private."""
    list_samplers: bool = False
    """Print the sampling methods and exit."""
    request: Annotated[SampleRequest, arg(name="")]

    def check(self) -> None:
        """Raise an error for a model or an output that cannot be; nothing heavy is imported."""
        if self.output is not None and self.push_dataset is None:
            check_output(self.output)
        check_model(self.request.model)

    def run(self) -> None:
        """Write the samples, or publish them."""
        if self.push_dataset is not None:
            from hfgen.sampling.dataset import push_samples

            print(push_samples(self.request, self.push_dataset, self.output, self.public))
            return
        from hfgen.sampling.generate import write_samples

        if self.public:
            raise ConfigError("--public is for --push-dataset USER/NAME")
        print(write_samples(self.request, self.output))


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Upload a model with its card to the Hub, read it back and compare. Log in first: hf auth login.

    Without a Hub: hfgen publish MODEL ./FOLDER writes the same files to a folder.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, model folder, Hub id, or folder of a dataset that `hfgen sample --push-dataset` made."""
    repo_id: Annotated[Positional[str], arg(metavar="REPO-ID")]
    """Repository on the Hub: user/name or organisation/name. Or a folder, which begins with ./, ../, / or ~."""
    public: bool = False
    """Make the repository public. Default: private."""
    message: str | None = None
    """First line of the commit."""
    license: str | None = None
    """Licence of the weights, by its name on the Hub, such as apache-2.0. Default: that of the card."""
    source: Annotated[str | None, arg(metavar="URL|REQUIREMENT")] = None
    """Source from which pip installs hfgen, as card and shims name it. Default: HFGEN_SOURCE (no source if it is not
    set, since the name on PyPI is not ours)."""

    def check(self) -> None:
        """Raise an error for a model or a repository that cannot be; nothing heavy is imported."""
        check_model(self.model)

    def run(self) -> None:
        """Publish the model or the dataset, and print its address."""
        from hfgen.hub.folder import is_folder, publish_to_folder
        from hfgen.hub.publish import publish
        from hfgen.sampling.dataset import dataset_to_folder, is_dataset, push_dataset

        if is_folder(self.repo_id):
            if self.public or self.message is not None:
                raise ConfigError(f"--public and --message are for the Hub, {self.repo_id} is a folder")
            if is_dataset(self.model):
                print(dataset_to_folder(self.model, self.repo_id))
            else:
                print(publish_to_folder(self.model, self.repo_id, source=self.source, licence=self.license))
        elif is_dataset(self.model):
            print(push_dataset(self.model, self.repo_id, public=self.public, message=self.message))
        else:
            more = {"message": self.message, "source": self.source, "licence": self.license}
            print(publish(self.model, self.repo_id, public=self.public, **more))


@dataclass(frozen=True, kw_only=True)
class Script:
    """Write a recipe as one file that installs hfgen itself (PEP 723), for `hf jobs uv run FILE --FIELD VALUE ...`."""

    recipe: Annotated[Positional[str], arg(metavar="RECIPE", help=f"One of {', '.join(RECIPES)}.")]
    output: Annotated[Path | None, arg(aliases=("-o",))] = None
    """FILE.py. Default: train_RECIPE.py in this folder."""
    source: Annotated[str | None, arg(metavar="URL|REQUIREMENT")] = None
    """Source from which uv installs hfgen. Default: HFGEN_SOURCE."""

    def check(self) -> None:
        """Raise an error for a recipe that does not exist."""
        recipe_name(self.recipe)

    def run(self) -> None:
        """Write the file, and print its name."""
        from hfgen.hub.script import write_script

        path = self.output or Path(f"train_{self.recipe}.py")
        write_script(self.recipe, path, self.source)
        print(f"written to {path}: hf jobs uv run {path} --output-dir run")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model, or samples, against reference data: quality, diversity, likelihood, memorisation, cost.

    Several processes share the work: accelerate launch -m hfgen evaluate MODEL --dataset DATASET
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Run folder, model folder or Hub id; diffusers itself loads stock:MODEL. Or samples that anybody made: a folder of
    images, a .npz, .npy or parquet file."""
    dataset: str
    """Reference data, as for hfgen train."""
    output: Annotated[Path | None, arg(aliases=("-o",))] = None
    """FILE.json. Default: evaluation.json in the run folder, from which the model's card takes its numbers."""
    arguments: Annotated[EvaluationArguments, arg(name="")]

    def check(self) -> None:
        """Raise an error for a model or data that cannot be; nothing heavy is imported."""
        check_evaluated(self.model)
        check_dataset(self.dataset)

    def run(self) -> None:
        """Print the table of metrics."""
        from hfgen.evaluation.api import evaluate_to

        print_text(evaluate_to(self.model, self.dataset, self.output, self.arguments))


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare models by the same data, seed and features, in a report with plots. Nothing is trained.

    --num-steps, --guidance-scale and --sampler apply to the models that take them.
    """

    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL [MODEL ...]")]
    """Run folders, model folders or Hub ids; diffusers itself loads stock:MODEL."""
    dataset: str
    """Reference data, as for hfgen train."""
    output: Annotated[Path, arg(aliases=("-o",))]
    """Folder for report.md, report.json and pictures."""
    arguments: Annotated[EvaluationArguments, arg(name="")]

    def check(self) -> None:
        """Raise an error for models or data that cannot be; nothing heavy is imported."""
        for model in self.models:
            check_evaluated(model)
        check_dataset(self.dataset)

    def run(self) -> None:
        """Print the ranks."""
        from hfgen.evaluation.api import compare_to

        print_text(compare_to(self.models, self.dataset, self.output, self.arguments))


Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Publish, subcommand("publish")]
    | Annotated[Script, subcommand("script")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Compare, subcommand("compare")]
)


def check_evaluated(model: str) -> None:
    """Raise ConfigError for a model that cannot be, with or without `stock:` before its name.

    Patterns of files of samples are left alone.
    """
    if not set(model) & set("*?["):
        check_model(model.removeprefix(STOCK))


def print_text(text: str) -> None:
    """Print a text, if there is one."""
    if text:
        print(text)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its code. Default: the words of the command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    keep_memory()
    print_warnings_in_one_line()
    raise SystemExit(exit_code_of(run, words))


def run(words: list[str]) -> int:
    """Return the exit code of a command; tyro itself exits with 2 for words that it cannot parse."""
    # run options that print something
    first = words[0] if words else ""
    if first == "--version":
        print(f"hfgen {__version__}")
        return 0
    if first == "sample" and "--list-samplers" in words:
        from hfgen.schedulers.samplers import described

        print(described())
        return 0
    if first.replace("_", "-").startswith("--tyro-"):
        parse(words, completed_command())
    # let recipes parse their own fields
    if first == "train" and words[1:] and words[1] not in HELP:
        name = recipe_name(words[1])
        settings = import_module(f"hfgen.training.settings.{name}").SPEC.parse(words[2:])
        print(f"hfgen train {name}: starting", file=sys.stderr)            # imports take seconds
        from hfgen.training.engine.run import train

        return train(import_module(RECIPES[name]).RECIPE, settings)
    # run other commands, or print help
    if not words:
        with suppress(SystemExit):
            parse(["--help"])
        return 2
    command = parse(["train", "--help"] if first == "train" else words)
    command.check()
    command.run()
    return 0


def recipe_name(name: str) -> str:
    """Return the name of a recipe. Raises ConfigError for a name that no recipe has."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return name


def completed_command() -> Any:
    """Return the commands as one type in which each recipe has its fields, from which tyro makes shell completion."""
    # collect the settings of each recipe
    recipes: list[Any] = []
    for name in RECIPES:
        settings = import_module(f"hfgen.training.settings.{name}").SPEC.settings
        recipes.append(Annotated[settings, subcommand(name)])
    # put them in the place of the one word of `hfgen train`
    train = make_dataclass("Train", [("recipe", reduce(or_, recipes))])
    return reduce(or_, [Annotated[train, subcommand("train")], *get_args(Command)[1:]])


def parse(words: list[str], command: Any = Command) -> Any:
    """Return the command that the words describe; print the help, or a usage error, and exit otherwise."""
    # make one word of two numbers of a resolution
    for i, word in enumerate(words):
        numbers = words[i + 1 : i + 3]
        if word == "--resolution" and len(numbers) == 2 and all(number.isdigit() for number in numbers):
            words = [*words[: i + 1], " ".join(numbers), *words[i + 3 :]]
    # parse
    about = (
        f"Train, judge, share and sample generative models. Version {__version__} (--version prints it). Completion "
        'in the shell: eval "$(hfgen --tyro-print-completion bash)", or zsh, fish.'
    )
    config = (FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes)
    return tyro.cli(command, args=words, prog="hfgen", description=about, config=config)


if __name__ == "__main__":
    main()
