-- The hub's metadata. The same statements run on SQLite and PostgreSQL: ids are BYTEA, times BIGINT milliseconds
-- since 1970, and nothing depends on a type that only one of them has.

CREATE TABLE tenants (
    tenant TEXT NOT NULL PRIMARY KEY,
    created_unix_ms BIGINT NOT NULL
);

CREATE TABLE sites (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    site TEXT NOT NULL,
    created_unix_ms BIGINT NOT NULL,
    PRIMARY KEY (tenant, site)
);

CREATE TABLE embodiments (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    embodiment BYTEA NOT NULL,
    name TEXT NOT NULL,
    definition TEXT NOT NULL,
    PRIMARY KEY (tenant, embodiment)
);

CREATE TABLE robots (
    tenant TEXT NOT NULL,
    robot TEXT NOT NULL,
    site TEXT NOT NULL,
    created_unix_ms BIGINT NOT NULL,
    last_seen_unix_ms BIGINT,
    embodiment BYTEA,
    report TEXT,
    PRIMARY KEY (tenant, robot),
    FOREIGN KEY (tenant, site) REFERENCES sites (tenant, site)
);

CREATE TABLE certificates (
    serial TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    robot TEXT NOT NULL,
    issued_unix_ms BIGINT NOT NULL,
    expires_unix_ms BIGINT NOT NULL,
    FOREIGN KEY (tenant, robot) REFERENCES robots (tenant, robot)
);

CREATE TABLE packs (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    pack BYTEA NOT NULL,
    bytes BIGINT NOT NULL,
    stored_unix_ms BIGINT NOT NULL,
    PRIMARY KEY (tenant, pack)
);

CREATE TABLE chunks (
    tenant TEXT NOT NULL,
    chunk BYTEA NOT NULL,
    pack BYTEA NOT NULL,
    position BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    key_id BIGINT NOT NULL,
    PRIMARY KEY (tenant, chunk),
    FOREIGN KEY (tenant, pack) REFERENCES packs (tenant, pack)
);

CREATE TABLE episodes (
    tenant TEXT NOT NULL,
    episode BYTEA NOT NULL,
    recording BYTEA NOT NULL,
    arrival BIGINT NOT NULL,
    robot TEXT NOT NULL,
    site TEXT NOT NULL,
    ordinal BIGINT NOT NULL,
    task TEXT NOT NULL,
    embodiment BYTEA NOT NULL,
    actor TEXT NOT NULL,
    release TEXT,
    outcome TEXT NOT NULL,
    ending TEXT NOT NULL,
    steps BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    begin_wall_ns BIGINT NOT NULL,
    stored_unix_ms BIGINT NOT NULL,
    pack BYTEA NOT NULL,
    position BIGINT NOT NULL,
    manifest_bytes BIGINT NOT NULL,
    key_id BIGINT NOT NULL,
    PRIMARY KEY (tenant, episode),
    UNIQUE (tenant, recording),
    FOREIGN KEY (tenant, pack) REFERENCES packs (tenant, pack),
    FOREIGN KEY (tenant, embodiment) REFERENCES embodiments (tenant, embodiment)
);

CREATE UNIQUE INDEX episodes_by_arrival ON episodes (tenant, arrival);
CREATE INDEX episodes_by_robot ON episodes (tenant, robot, ordinal);
CREATE INDEX episodes_by_task ON episodes (tenant, task, arrival);

CREATE TABLE snapshots (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    snapshot BYTEA NOT NULL,
    query TEXT NOT NULL,
    episodes BIGINT NOT NULL,
    created_unix_ms BIGINT NOT NULL,
    PRIMARY KEY (tenant, snapshot)
);

CREATE TABLE runs (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    run TEXT NOT NULL,
    skill TEXT NOT NULL,
    snapshot BYTEA,
    state TEXT NOT NULL,
    config TEXT NOT NULL,
    progress TEXT NOT NULL,
    error TEXT,
    release TEXT,
    created_unix_ms BIGINT NOT NULL,
    updated_unix_ms BIGINT NOT NULL,
    PRIMARY KEY (tenant, run)
);

CREATE TABLE skills (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    skill TEXT NOT NULL,
    created_unix_ms BIGINT NOT NULL,
    PRIMARY KEY (tenant, skill)
);

CREATE TABLE releases (
    tenant TEXT NOT NULL,
    skill TEXT NOT NULL,
    version BIGINT NOT NULL,
    envelope BYTEA NOT NULL,
    manifest TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    published_unix_ms BIGINT NOT NULL,
    PRIMARY KEY (tenant, skill, version),
    FOREIGN KEY (tenant, skill) REFERENCES skills (tenant, skill)
);

-- What robots may fetch: envelopes and files of releases.
CREATE TABLE blobs (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    digest BYTEA NOT NULL,
    bytes BIGINT NOT NULL,
    PRIMARY KEY (tenant, digest)
);

CREATE TABLE assignments (
    tenant TEXT NOT NULL,
    robot TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    releases TEXT NOT NULL,
    updated_unix_ms BIGINT NOT NULL,
    PRIMARY KEY (tenant, robot),
    FOREIGN KEY (tenant, robot) REFERENCES robots (tenant, robot)
);
