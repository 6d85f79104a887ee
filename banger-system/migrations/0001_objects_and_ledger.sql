-- Kernels, images, machines, and the ledger of what machines hold on the host.
--
-- Ids are 32 hexadecimal digits, sizes are bytes, times are microseconds since the epoch (0: never).
-- Words (states, reasons, resources) are checked where they are read: a CHECK here would make each new
-- word a rebuild of its table.

-- "bngr": tells our files from those of other programs.
PRAGMA application_id = 0x626e6772;

CREATE TABLE kernels (
    id         TEXT    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    owner      INTEGER NOT NULL,
    shared     INTEGER NOT NULL CHECK (shared IN (0, 1)),
    source     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    digest     TEXT    NOT NULL,
    release    TEXT    NOT NULL,
    modules    INTEGER NOT NULL,
    size       INTEGER NOT NULL
) STRICT;

CREATE TABLE images (
    id           TEXT    NOT NULL PRIMARY KEY,
    name         TEXT    NOT NULL,
    owner        INTEGER NOT NULL,
    shared       INTEGER NOT NULL CHECK (shared IN (0, 1)),
    source       TEXT    NOT NULL,
    kernel       TEXT    REFERENCES kernels (id),
    created_at   INTEGER NOT NULL,
    digest       TEXT    NOT NULL,
    virtual_size INTEGER NOT NULL,
    disk_usage   INTEGER NOT NULL
) STRICT;

CREATE TABLE vms (
    id         TEXT    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    owner      INTEGER NOT NULL,
    vcpus      INTEGER NOT NULL,
    memory     INTEGER NOT NULL,
    disk_size  INTEGER NOT NULL,
    hostname   TEXT    NOT NULL,
    init       TEXT    NOT NULL,
    labels     TEXT    NOT NULL CHECK (json_valid(labels)),
    image      TEXT    NOT NULL REFERENCES images (id),
    kernel     TEXT    NOT NULL REFERENCES kernels (id),
    state      TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    lifetime   TEXT    NOT NULL,
    -- The connection that a machine is bound to, and the bus on which it has that name.
    connection TEXT,
    bus        TEXT,
    token      TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ready_at   INTEGER NOT NULL,
    boot_id    TEXT    NOT NULL,
    CHECK ((connection IS NULL) = (bus IS NULL))
) STRICT;

-- Not bound to vms: a resource is recorded before its machine is complete enough to have a row, and one
-- that could not be released stays after the row is gone.
CREATE TABLE ledger (
    vm       TEXT NOT NULL,
    resource TEXT NOT NULL,
    PRIMARY KEY (vm, resource)
) STRICT, WITHOUT ROWID;
