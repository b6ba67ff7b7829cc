"""The protocol of an evaluation: what figures have to share before they are compared.

The same network scores several points more or less by how it is asked. The field's papers differ in

    queries        query points of a task, or of each of its classes
    transduction   whether a prediction depends on the other query points, as it does through batch statistics
    steps          of adaptation
    tasks          that were scored
    ensembling     runs whose predictions are averaged: 1 is one
"""

from collections.abc import Mapping, Sequence
from typing import Any

from meta_exp.models.probe import couples_points
from meta_exp.tasks.stream import TaskFamily, draw_tasks
from meta_exp.training.learner import Learner

ENSEMBLING = "ensembling"


def protocol_of(learner: Learner, family: TaskFamily, tasks: int) -> dict[str, Any]:
    """Return the protocol by which ``learner`` is scored on ``tasks`` test tasks of ``family``."""
    support, query = draw_tasks(family, "test", 0, 1)
    queries = len(query.y[0]) / (len(support.y[0].unique()) if family.classes else 1)
    return {
        "queries": int(queries) if queries.is_integer() else queries,
        "transduction": couples_points(learner.model, family.input_shape),
        "steps": learner.evaluation_steps,
        "tasks": tasks,
        ENSEMBLING: 1,
    }


def of_ensemble(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the protocol of runs that predict together; where they differ, all that they have."""
    found = {key: dict.fromkeys(member.get(key) for member in members) for key in members[0]}
    shared = {key: values[0] if len(values := list(seen)) == 1 else _listed(values) for key, seen in found.items()}
    return shared | {ENSEMBLING: len(members)}


def differing(protocols: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the keys in which protocols differ, each with all that there is of it."""
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    found = {key: list(dict.fromkeys(p[key] for p in protocols if key in p)) for key in keys}
    return {key: _listed(values) for key, values in found.items() if len(values) > 1}


def mixed(protocols: Sequence[Mapping[str, Any]]) -> str:
    """Return one line that says in what the protocols of a comparison differ, or nothing where they do not."""
    words = "; ".join(f"{key} {values}" for key, values in differing(protocols).items())
    return f"protocols are mixed, and figures compare only where they are alike: {words}" if words else ""


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value).lower() for value in sorted(values, key=_order))


def _order(value: Any) -> tuple[bool, float, str]:
    words = isinstance(value, str)  # of an ensemble whose members differ
    return words, 0.0 if words else float(value), str(value)
