-- The manifest that an image of a registry was made of: then `source` is its reference. NULL for one made of files.
ALTER TABLE images ADD COLUMN manifest TEXT;
-- How the programs of the image want to be run, as JSON.
ALTER TABLE images ADD COLUMN config TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(config));
