-- The key pair by which a machine's ssh server shows who it is, in the format of OpenSSH. A machine that is older than this
-- column has none until it is read.
ALTER TABLE vms ADD COLUMN host_key TEXT NOT NULL DEFAULT '';
-- The public keys that the machine lets in, a line each.
ALTER TABLE vms ADD COLUMN authorized_keys TEXT NOT NULL DEFAULT '';
