-- Where the guests of this host are: chosen once, and kept. One row at most.
CREATE TABLE network (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    subnet TEXT NOT NULL
) STRICT;

-- A machine's place among the addresses, from its creation to its deletion.
ALTER TABLE vms ADD COLUMN slot INTEGER NOT NULL DEFAULT 0;
UPDATE vms SET slot = rowid - 1;
CREATE UNIQUE INDEX vms_slot ON vms (slot);
-- Whether the guest reaches what lies beyond the host.
ALTER TABLE vms ADD COLUMN nat INTEGER NOT NULL DEFAULT 0 CHECK (nat IN (0, 1));
