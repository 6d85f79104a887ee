-- The monitor that a machine is to run under: a word, checked where it is read.
ALTER TABLE vms ADD COLUMN vmm TEXT NOT NULL DEFAULT 'auto';
