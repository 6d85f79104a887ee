-- How the guest of a running sandbox began; empty while it is down.
ALTER TABLE vms ADD COLUMN booted_from TEXT NOT NULL DEFAULT '';
-- What happens to a sandbox that idles for this many microseconds; an empty action means nothing.
ALTER TABLE vms ADD COLUMN idle_action TEXT NOT NULL DEFAULT '';
ALTER TABLE vms ADD COLUMN idle_after INTEGER NOT NULL DEFAULT 0;
