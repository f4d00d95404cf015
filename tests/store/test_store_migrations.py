"""The schema: migrations go up and down and equal the tables, on both databases; a stranger's schema is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, select, text

from controlplane.services.lifecycles import submit
from controlplane.store import deliveries, incidents, lifecycles
from controlplane.store.engine import SchemaNewer, SchemaOlder, Store, StoreConflict
from controlplane.store.tables import Lifecycle, metadata
from jobs.lifecycle import parse_lifecycle
from tests.postgres import Postgres
from tests.runs.conducting import plan

INCIDENT = {
    "number": 1,
    "key": "gpu-lost/node-1/gpu0",
    "rule": "gpu-lost",
    "severity": "critical",
    "action": "restart",
    "entity": "gpu0",
    "title": "GPU lost",
    "opened_s": 1.0,
    "updated_s": 1.0,
}


def tables_of(store: Store) -> set[str]:
    engine = create_engine(store.url)
    try:
        return set(inspect(engine).get_table_names()) - {"alembic_version"}
    finally:
        engine.dispose()


def test_the_migrations_equal_the_tables(store: Store) -> None:
    engine = create_engine(store.url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_down_removes_everything_and_up_brings_it_back(store: Store) -> None:
    assert tables_of(store) == set(metadata.tables)
    store.migrate("base")
    assert tables_of(store) == set()
    with pytest.raises(SchemaOlder, match="revision none"):
        store.check()
    store.migrate()
    store.check()
    assert tables_of(store) == set(metadata.tables)


def test_migrating_twice_changes_nothing(store: Store) -> None:
    store.migrate()
    store.check()


def test_a_newer_database_is_refused_with_a_sentence(store: Store) -> None:
    with store.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for door in (store.migrate, store.check):
        with pytest.raises(SchemaNewer, match=r"a newer one wrote it\. Run that version"):
            door()


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path, postgres: Postgres) -> None:
    for url in (f"sqlite:///{tmp_path / 'half.db'}", postgres.url(postgres.create())):
        store = Store(url)
        with store.write() as session:
            session.execute(text("CREATE TABLE tokens (id TEXT)"))
        with pytest.raises(Exception, match="already exists"):
            store.migrate()
        assert tables_of(store) == {"tokens"}
        store.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/name"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="a SQLite file or a PostgreSQL database"):
        Store(url)


def test_messages_of_lifecycles_go_with_the_migration_down_and_those_of_incidents_stay(store: Store) -> None:
    with store.write() as session:
        found = submit(
            session, parse_lifecycle(plan({"name": "a"})), where=lambda _spec: "memory", actor="ada", now=1.0
        )
        incident = incidents.add(session, **INCIDENT)
        told = {"seq": 1, "channel": "ops", "body": {}, "due_s": 0.0, "now": 1.0}
        for about in ({"lifecycle_id": found.id}, {"incident_id": incident.id}):
            deliveries.add(session, **told, **about)
    for about in ({}, {"lifecycle_id": found.id, "incident_id": incident.id}, {"lifecycle_id": found.id}):
        with pytest.raises(StoreConflict), store.write() as session:
            deliveries.add(session, **{**told, "seq": 1 if len(about) == 1 else 2}, **about)
    store.migrate("0005")
    with store.read() as session:
        assert session.execute(text("SELECT incident_id FROM deliveries")).scalars().all() == [incident.id]
    store.migrate()
    with store.read() as session:
        assert [one.lifecycle_id for one in deliveries.of_incident(session, incident.id)] == [None]


def test_void_words_are_kept_as_used_ones_by_the_schema_before(store: Store) -> None:
    with store.write() as session:
        found = submit(
            session, parse_lifecycle(plan({"name": "a"})), where=lambda _spec: "memory", actor="ada", now=1.0
        )
        word = {"checkpoint_hash": "ab" * 32, "verdict": "approved", "actor": "ada", "lifecycle_id": found.id}
        for at, changes in enumerate(({"used_s": 8.0}, {"voided_s": 9.0}, {})):
            lifecycles.add_approval(session, now=float(at), stage="a", **word, **changes)
    store.migrate("0006")
    with store.read() as session:
        used = session.execute(text("SELECT used_s FROM approvals ORDER BY at_s")).scalars().all()
    assert used == [8.0, 9.0, None]
    store.migrate()
    with store.read() as session:
        assert [one.open for one in lifecycles.approvals(session, found.id)] == [False, False, True]


def test_a_plan_of_the_older_form_is_read_after_the_migration_and_goes_back(store: Store) -> None:
    store.migrate("0004")
    head = {"name": "old", "labels": {}}
    body = {"stage": "pretrain", "command": ["x"], "resources": {"nodes": 1}, "train": {"steps": 2}}
    job = {"apiVersion": "trimtab/v1", "kind": "Job", "metadata": head, "spec": body}
    stages = [{"name": "pretrain", "job": job}]
    old = {"apiVersion": "trimtab/v1", "kind": "Lifecycle", "metadata": head, "spec": {"stages": stages}}
    row = {"spec": json.dumps(old)}
    with store.write() as session:
        insert = "INSERT INTO lifecycles (id, name, spec, created_s, created_by) VALUES ('l', 'old', :spec, 0, 'ada')"
        session.execute(text(insert), row)
    store.migrate()
    with store.read() as session:
        kept = session.get(Lifecycle, "l")
        assert kept is not None
        assert parse_lifecycle(kept.spec).job("pretrain", "train").spec.train.steps == 2
    store.migrate("0004")
    with store.read() as session:
        assert session.execute(select(Lifecycle.spec)).scalar_one() == old
