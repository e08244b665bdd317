"""Model cards: what a run knows about itself, as a README.md for the Hub with metadata that it can read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

TASK = "image-classification"
# Read at once: a package that is replaced during a long training must not be mixed with the one that is running.
_TEMPLATE = (files("hf_balancemix.hub") / "model_card.md.j2").read_text(encoding="utf-8")
# In the usage; an upload puts the name of the repository in its place.
HERE = 'model="."'
# What a refresh measures, in the words of a card; shares are fractions, the rest plain numbers.
_LABELS = {
    "clean": "labels taken for clean",
    "relabelled": "labels re-labelled",
    "ambiguous": "labels left ambiguous",
    "label_precision": "of the labels taken for clean, truly right",
    "label_recall": "of the truly right labels, taken for clean",
    "relabel_accuracy": "of the re-labelled, right afterwards",
    "selected_by_first": "images selected by the first network",
    "selected_by_second": "images selected by the second network",
    "selection_precision": "of the selected images, all labels right",
    "selection_recall": "of the images with all labels right, selected",
    "selected_labels_right": "labels of selected images that are right",
}
_SAMPLER = {
    "sampling_max": "largest sampling probability, in multiples of uniform",
    "sampling_min": "smallest sampling probability, in multiples of uniform",
    "effective_sample_share": "effective sample size, as a share of the images",
    "sampling_total_variation": "total variation from uniform sampling",
}
_NOISES = {
    "mislabel": "each positive label was moved to another class with probability {rate:g}%",
    "flip": "each label was flipped with probability {rate:g}%",
    "single_positive": "of each image's positive labels only one was kept, and the others were made negative",
}
# An underscore between letters or digits is one in every dialect.
_SPECIAL = re.compile(r"[\\`*{}\[\]<>|#!&~$]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True)
class Scores:
    """Results on one split, in points.

    Attributes:
        map: Mean average precision.
        groups: mAP of groups of classes, by name.
        per_class_ap: AP by class; None for a class without positives. Empty where only means are known.
        ema_map: That of the averaged weights, if there are any.
        split: Of the data.
        when: At which point of the training.
        group_classes: Classes of each group, by name.
    """

    map: float
    groups: Mapping[str, float] = field(default_factory=dict)
    per_class_ap: Mapping[str, float | None] = field(default_factory=dict)
    ema_map: float | None = None
    split: str = "test"
    when: str = "after the last epoch"
    group_classes: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class DataFacts:
    """What was trained on.

    Attributes:
        name: Shown.
        hub_id: Name on the Hub, if it is there.
        images: Number of images by split.
        noise: Kind of injected noise; "none" for labels as given.
        noise_rate: Its rate, for the kinds that have one.
    """

    name: str
    hub_id: str | None = None
    images: Mapping[str, int] = field(default_factory=dict)
    noise: str = "none"
    noise_rate: float | None = None


@dataclass(frozen=True)
class CardFacts:
    """All that a card says. What is None or empty is left out, and nothing is made up in its place.

    Attributes:
        name: Title, and name in the ``model-index``.
        architecture: Class of the model.
        class_names: K names.
        trainer: Class of the trainer.
        remote_code: Whether the model loads without this package only with ``trust_remote_code=True``.
        note: In front of everything.
        trained: Whether there is a model; a card without one is a plan.
        method: Name of the method.
        head: Name of the head.
        base_model: Name on the Hub of the model that training started from.
        origin: In words, what training started from.
        license: Identifier such as ``apache-2.0``; no licence is stated unless given.
        language: Of the class names, as a code.
        tags: More tags.
        data: What was trained on.
        scores: Results.
        diagnostics: What the last refresh measured, by the trainers' names.
        settings: Options worth a table.
        command: That repeats the run.
        versions: Of packages, by name.
        hardware: In words.
        seconds: Of training.
        results_file: That holds the numbers of this card in full.
    """

    name: str
    architecture: str
    class_names: Sequence[str]
    trainer: str = "MultiLabelTrainer"
    remote_code: bool = False
    note: str | None = None
    trained: bool = True
    method: str | None = None
    head: str | None = None
    base_model: str | None = None
    origin: str | None = None
    license: str | None = None
    language: str | None = None
    tags: Sequence[str] = ()
    data: DataFacts | None = None
    scores: Scores | None = None
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str | None = None
    seconds: float | None = None
    results_file: str | None = None


def render_card(facts: CardFacts) -> str:
    """Return the text of a card, metadata in front.

    Names of classes, files and groups may hold anything: they are escaped for Markdown, HTML and YAML.
    """
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"cell": escaped, "fenced": _fenced, "duration": _duration}
    text = environment.from_string(_TEMPLATE).render(
        facts=facts,
        metadata=_metadata(facts).to_yaml(),
        usage=_usage(facts),
        labels=_rows(facts.diagnostics, _LABELS),
        sampler=_rows(facts.diagnostics, _SAMPLER),
        weakest=_weakest(facts.scores),
        noise=_noise(facts.data),
        groups_of=_groups_of(facts.scores),
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def escaped(text: object) -> str:
    """Return text for a line or a table of Markdown, in which nothing is markup."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", " ".join(str(text).split()))


def _usage(facts: CardFacts) -> str:
    code = ", trust_remote_code=True" if facts.remote_code else ""
    return (
        "from transformers import pipeline\n"
        f'classify = pipeline("{TASK}", {HERE}{code})\n'
        'print(classify("photo.jpg", top_k=5))'
    )


def _metadata(facts: CardFacts) -> ModelCardData:
    tags = [
        "multi-label-image-classification",
        "hf-balancemix",
        *([facts.method] if facts.method else []),
        *facts.tags,
    ]
    if facts.data and facts.data.noise != "none":
        tags.append("label-noise")
    hub_id = facts.data.hub_id if facts.data else None
    results = _eval_results(facts)
    return ModelCardData(
        license=facts.license,
        language=facts.language,
        library_name="transformers",
        pipeline_tag=TASK,
        base_model=facts.base_model,
        datasets=[hub_id] if hub_id else None,
        tags=list(dict.fromkeys(tags)),
        model_name=facts.name if results else None,
        eval_results=results or None,
    )


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    scores, data = facts.scores, facts.data
    if scores is None:
        return []
    named = {"mAP": scores.map} | {f"mAP ({name})": value for name, value in scores.groups.items()}
    if scores.ema_map is not None:
        named["mAP (averaged weights)"] = scores.ema_map
    name = data.name if data else "unnamed"
    shared: dict[str, Any] = {
        "task_type": TASK,
        "task_name": "Multi-label image classification",
        "dataset_name": name,
        "dataset_type": (data.hub_id if data else None) or re.sub(r"\W+", "-", name).strip("-").lower() or "unnamed",
        "dataset_split": scores.split,
        "metric_type": "mAP",
    }
    return [
        EvalResult(**shared, metric_name=key, metric_value=round(value, 2))
        for key, value in named.items()
        if value == value
    ]


def _noise(data: DataFacts | None) -> str:
    """Return what was done to the training labels."""
    if data is None:
        return ""
    if data.noise not in _NOISES:  # several, one upon the other
        return data.noise
    return f"{data.noise}, {_NOISES[data.noise].format(rate=100 * (data.noise_rate or 0))}"


def _weakest(scores: Scores | None) -> list[tuple[str, float]]:
    """Return the three classes with the lowest AP, where there are enough to say so."""
    known = {name: ap for name, ap in scores.per_class_ap.items() if ap is not None} if scores else {}
    return sorted(known.items(), key=lambda item: item[1])[:3] if len(known) > 5 else []


def _groups_of(scores: Scores | None) -> dict[str, str]:
    """Return for each class that is in a group the names of its groups."""
    groups: dict[str, list[str]] = {}
    for name, classes in scores.group_classes.items() if scores else ():
        for member in classes:
            groups.setdefault(member, []).append(name)
    return {member: ", ".join(names) for member, names in groups.items()}


def _rows(measured: Mapping[str, float], words: Mapping[str, str]) -> list[tuple[str, str]]:
    plain = ("sampling_max", "sampling_min")
    return [
        (text, f"{measured[name]:.2f}" if name in plain else f"{measured[name]:.1%}")
        for name, text in words.items()
        if measured.get(name, float("nan")) == measured.get(name)  # a share of nothing is NaN
    ]


def _fenced(text: str, language: str = "") -> str:
    """Return a block of code; the fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s" if minutes else f"{seconds:.1f} s"
