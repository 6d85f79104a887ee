-- Bytes of the file system with all modules of a kernel; zero where it came without modules, or before there were any.
ALTER TABLE kernels ADD COLUMN module_tree INTEGER NOT NULL DEFAULT 0 CHECK (module_tree >= 0);
