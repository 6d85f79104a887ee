-- The guest's time zone: its name, and its rule behind a space. Empty where it is the image's own.
ALTER TABLE vms ADD COLUMN timezone TEXT NOT NULL DEFAULT '';
