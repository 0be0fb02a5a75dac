"""Finished trials into Optuna's tables, many at once.

`Study.add_trial` asks the database about every row that it is to write, some 30 questions a trial, 20 ms on SQLite and
40 to 100 on PostgreSQL. A grid's driver is the only writer and adds only finished trials: it need not ask.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import Engine, delete, func, insert, select
from sqlalchemy.orm import Session


def add_trials(study: optuna.Study, engine: Engine, trials: Sequence[FrozenTrial]) -> None:
    """What `study.add_trials` does, for finished trials with one value, in one transaction: all or none."""
    with Session(engine) as session, session.begin():
        of_study = select(func.count()).where(models.TrialModel.study_id == study._study_id)
        number = session.scalar(of_study) or 0
        rows = [
            models.TrialModel(
                study_id=study._study_id, number=number + index, state=trial.state,
                datetime_start=trial.datetime_start, datetime_complete=trial.datetime_complete,
            ) for index, trial in enumerate(trials)
        ]  # fmt: skip
        session.add_all(rows)
        session.flush()  # gives them their ids
        numbered: list[tuple[Any, FrozenTrial]] = [
            (row.trial_id, trial) for row, trial in zip(rows, trials, strict=True)
        ]
        for model, describe in ((models.TrialValueModel, _value), (models.TrialParamModel, _params),
                                (models.TrialUserAttributeModel, _attributes)):  # fmt: skip
            described = [row for trial_id, trial in numbered for row in describe(trial_id, trial)]
            if described:
                session.execute(insert(model), described)


def stored_attributes(study: optuna.Study, engine: Engine, name: str) -> set[Any]:
    """The values that a user attribute has in the trials of a study."""
    attribute = models.TrialUserAttributeModel
    query = select(attribute.value_json).join(models.TrialModel).where(
        models.TrialModel.study_id == study._study_id, attribute.key == name
    )  # fmt: skip
    with Session(engine) as session:
        return {json.loads(value) for value in session.scalars(query)}


def remove_trials(study: optuna.Study, engine: Engine) -> None:
    """Empties a study. `optuna.delete_study` loads every row first: a minute for 10,000 trials."""
    trial = models.TrialModel
    tables = [model for model in models.BaseModel.__subclasses__() if "trial_id" in model.__table__.columns]
    ids = select(trial.trial_id).where(trial.study_id == study._study_id)
    with Session(engine) as session, session.begin():
        for table in sorted(tables, key=lambda table: table is trial):  # the trials last: the others refer to them
            session.execute(delete(table).where(table.trial_id.in_(ids)))


def _value(trial_id: int, trial: FrozenTrial) -> list[dict[str, Any]]:
    value, kind = models.TrialValueModel.value_to_stored_repr(trial.values[0])
    return [{"trial_id": trial_id, "objective": 0, "value": value, "value_type": kind}]


def _params(trial_id: int, trial: FrozenTrial) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": trial_id, "param_name": name, "distribution_json": distribution_to_json(distribution),
            "param_value": distribution.to_internal_repr(trial.params[name]),
        } for name, distribution in trial.distributions.items()
    ]  # fmt: skip


def _attributes(trial_id: int, trial: FrozenTrial) -> list[dict[str, Any]]:
    return [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in trial.user_attrs.items()
    ]
