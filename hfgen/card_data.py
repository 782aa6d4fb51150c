"""The YAML head of a model's card, as the Hub reads it: library, task, tags, datasets and `model-index`.

What a user wrote there stays. What hfgen wrote before, and nobody has changed since, is brought up to date: a digest of
each of its values stands in the card.
"""

import hashlib
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import yaml_dump

from hfgen.card_families import Model
from hfgen.card_run import Number, Run
from hfgen.card_text import plain

COMMAND = "hfgen "
"""How the argument `command` begins that each of hfgen's metrics has, by which they are known again."""


def head_of(model: Model, name: str, run: Run | None) -> dict[str, Any]:
    """Return the head of the card of a model called `name`, without anything of the user's."""
    datasets = list(dict.fromkeys(data.hub_id for data in run.datasets() if data.hub)) if run else []
    numbers = [number for number in run.numbers() if indexed(number)] if run else []
    data = ModelCardData(
        datasets=datasets or None,
        library_name="diffusers" if model.stock else "hfgen",
        pipeline_tag=model.task,
        tags=["hfgen", *model.family.tags],
        model_name=plain(name) if numbers else None,
        eval_results=[eval_result(model, number) for number in numbers] or None,
    )
    head: dict[str, Any] = data.to_dict()
    return head


def indexed(number: Number) -> bool:
    """Return whether a number belongs into `model-index`: it was measured by an evaluation, or is a loss."""
    return not number.command.endswith("training") or number.name.startswith("loss")


def eval_result(model: Model, number: Number) -> EvalResult:
    """Return a number as the Hub's schema has it; what bounds it is in the arguments of the metric."""
    known: dict[str, Any] = {"command": number.command, "low": number.low, "high": number.high, "floor": number.floor}
    known |= {"confidence": None if number.low is None else 0.95, "extractor": number.extractor}
    data = number.data
    return EvalResult(
        task_type=model.task or "other",
        dataset_type=data.hub_id if data.hub else plain(data.name),
        dataset_name=plain(data.name),
        dataset_config=data.name.partition(":")[2] or None if data.hub else None,
        dataset_split=plain(data.split),
        metric_type=plain(number.name),
        metric_name=plain(number.name),
        metric_value=number.value,
        metric_args={key: _plain(value) for key, value in known.items() if value is not None},
    )


def merged(found: dict[str, Any], ours: dict[str, Any], written: dict[str, str]) -> dict[str, Any]:
    """Return the head `found` in a card, brought up to date with `ours`; `written` are the digests of what we wrote."""
    index = _others(found.get("model-index")) + ours.get("model-index", [])
    kept = {key: value for key, value in found.items() if written.get(key) != digest(value)} | {"model-index": index}
    everything = {**ours, **kept}
    order = [*(key for key in found if key in everything), *(key for key in everything if key not in found)]
    return {key: everything[key] for key in order if key != "model-index" or index}


def digests(ours: dict[str, Any], head: dict[str, Any]) -> dict[str, str]:
    """Return `{key: digest}` of what stands in `head` as it is in `ours`, sorted; `model-index` is known by itself."""
    same = sorted(key for key in ours if key != "model-index" and head[key] == ours[key])
    return {key: digest(ours[key]) for key in same}


def digest(value: Any) -> str:
    """Return twelve hexadecimal digits that stand for a value of YAML."""
    return hashlib.sha256(str(yaml_dump(value)).encode()).hexdigest()[:12]


def _others(index: Any) -> list[Any]:
    """Return a `model-index` without the metrics that hfgen wrote, and without what is empty then."""
    models = []
    for model in index or []:
        results = []
        for result in model["results"]:
            metrics = [metric for metric in result["metrics"] if not _is_ours(metric)]
            if metrics:
                results.append({**result, "metrics": metrics})
        if results:
            models.append({**model, "results": results})
    return models


def _is_ours(metric: dict[str, Any]) -> bool:
    args = metric.get("args")
    return isinstance(args, dict) and str(args.get("command", "")).startswith(COMMAND)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return plain(value) if isinstance(value, str) else value
