-- What a sandbox reaches beyond the host, if that is neither nothing nor everything: the entries of its policy. The column
-- nat stays, and is set for everything.
ALTER TABLE vms ADD COLUMN egress TEXT NOT NULL DEFAULT '';
