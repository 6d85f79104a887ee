-- Which ends of a sandbox start it again, and whether it starts when the host boots.
ALTER TABLE vms ADD COLUMN restart TEXT NOT NULL DEFAULT 'no';
ALTER TABLE vms ADD COLUMN autostart INTEGER NOT NULL DEFAULT 0;
