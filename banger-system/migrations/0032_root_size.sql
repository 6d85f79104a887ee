-- The size of the system disk. That of a sandbox which is older than this column is its image's.
ALTER TABLE vms ADD COLUMN root_size INTEGER NOT NULL DEFAULT 0;
UPDATE vms SET root_size = COALESCE((SELECT virtual_size FROM images WHERE images.id = vms.image), 0);
