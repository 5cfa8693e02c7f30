-- Chunks that no episode names yet, and since when: they were set down ahead of an episode that may never come. Rows of
-- before are taken as named.
ALTER TABLE chunks ADD COLUMN unnamed_unix_ms BIGINT;

CREATE INDEX chunks_unnamed ON chunks (tenant, unnamed_unix_ms) WHERE unnamed_unix_ms IS NOT NULL;

-- What lies in a pack: asked of each one that may be deleted.
CREATE INDEX chunks_by_pack ON chunks (tenant, pack);
CREATE INDEX episodes_by_pack ON episodes (tenant, pack);
