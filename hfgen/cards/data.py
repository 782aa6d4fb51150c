"""The YAML head of a model's card, as the Hub reads it: library, task, tags, datasets and `model-index`."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hfgen.cards.families import Model
from hfgen.cards.markdown import plain
from hfgen.cards.run import Number, RunSummary


def head_of(model: Model, name: str, run: RunSummary | None) -> dict[str, Any]:
    """Return the head of the card of a model called `name`, without fields that a user added."""
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
    """Return whether a metric belongs in `model-index`: it is a loss, or measured by an evaluation."""
    return not number.command.endswith("training") or number.name.startswith("loss")


def eval_result(model: Model, number: Number) -> EvalResult:
    """Return a metric in the Hub's schema; its interval and floor are arguments of the metric."""
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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return plain(value) if isinstance(value, str) else value
