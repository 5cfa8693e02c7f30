-- What robots gave up for want of room before it could be uploaded.
CREATE TABLE evictions (
    tenant TEXT NOT NULL,
    robot TEXT NOT NULL,
    ordinal BIGINT NOT NULL,
    recording BYTEA NOT NULL,
    task TEXT NOT NULL,
    outcome TEXT NOT NULL,
    interventions BIGINT NOT NULL,
    steps BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    reason TEXT NOT NULL,
    told_unix_ms BIGINT NOT NULL,
    -- The ordinals of a robot begin anew where its spool was replaced.
    PRIMARY KEY (tenant, robot, ordinal, recording),
    FOREIGN KEY (tenant, robot) REFERENCES robots (tenant, robot)
);
