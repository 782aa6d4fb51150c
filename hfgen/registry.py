"""The one static table of public names: where each class lives and under which name it is saved.

`MODULES` serves the lazy names of `import hfgen`. `SAVED_NAMES` gives the `[library, name]` pair that stands in
`model_index.json` and the `_class_name` of a component's configuration: the stock pair where diffusers has the same
thing, so that a saved folder is a stock folder. Loading goes the other way and never imports a name from a file.
"""

MODULES: dict[str, str] = {
    "AutoPipeline": "hfgen.pipelines.auto",
    "DDPMPipeline": "hfgen.pipelines.ddpm",
    "DDPMScheduler": "hfgen.schedulers.ddpm",
    "MLPDenoiser": "hfgen.models.mlp",
    "UNet": "hfgen.models.unet",
}

SAVED_NAMES: dict[str, tuple[str, str]] = {
    "DDPMScheduler": ("diffusers", "DDPMScheduler"),
    "UNet": ("diffusers", "UNet2DModel"),
}
"""Classes with a stock twin; every other component is saved as `("hfgen_shim", its own name)`."""


def saved_name(name: str) -> tuple[str, str]:
    """Return the `(library, class name)` pair under which the hfgen class `name` is saved."""
    return SAVED_NAMES.get(name, ("hfgen_shim", name))


def class_for(library: str, name: str) -> str | None:
    """Return the hfgen class name that loads what was saved as `(library, name)`; None where there is none."""
    if library == "hfgen_shim":
        return name if name in MODULES and name not in SAVED_NAMES else None
    return next((ours for ours, saved in SAVED_NAMES.items() if saved == (library, name)), None)
