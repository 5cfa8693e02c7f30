-- What robots may upload, as their operator last said: for all robots of a tenant (robot is empty), or for one. A policy
-- that was cleared leaves its row, without one: revisions never go back.
CREATE TABLE upload_policies (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    robot TEXT NOT NULL,
    revision BIGINT NOT NULL,
    policy TEXT,
    updated_unix_ms BIGINT NOT NULL,
    PRIMARY KEY (tenant, robot)
);
