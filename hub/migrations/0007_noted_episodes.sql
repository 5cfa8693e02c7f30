-- Episodes that robots have and described, and that nobody asked for or that have not arrived yet. What arrived is an
-- episode like any other; what its robot gave up is among the evictions.
CREATE TABLE noted_episodes (
    tenant TEXT NOT NULL,
    episode BYTEA NOT NULL,
    robot TEXT NOT NULL,
    ordinal BIGINT NOT NULL,
    recording BYTEA NOT NULL,
    task TEXT NOT NULL,
    outcome TEXT NOT NULL,
    interventions BIGINT NOT NULL,
    steps BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    noted_unix_ms BIGINT NOT NULL,
    requested_unix_ms BIGINT,
    PRIMARY KEY (tenant, episode),
    FOREIGN KEY (tenant, robot) REFERENCES robots (tenant, robot)
);

CREATE INDEX noted_by_robot ON noted_episodes (tenant, robot, ordinal);
