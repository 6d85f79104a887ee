-- The sandbox whose snapshot a row is. Snapshots have no address.
ALTER TABLE vms ADD COLUMN snapshot_of TEXT;
DROP INDEX vms_slot;
CREATE UNIQUE INDEX vms_slot ON vms (slot) WHERE snapshot_of IS NULL;
