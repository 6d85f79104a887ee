-- The image for which an image's file was made: all images that name the same one share it. An image that is older
-- than this column counts as one with a file of its own.
ALTER TABLE images ADD COLUMN file TEXT NOT NULL DEFAULT '';
UPDATE images SET file = id;
