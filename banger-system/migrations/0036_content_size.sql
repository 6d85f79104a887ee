-- The bytes of the files in an image. That of an image which is older than this column is what it occupies.
ALTER TABLE images ADD COLUMN content_size INTEGER NOT NULL DEFAULT 0;
UPDATE images SET content_size = disk_usage;
