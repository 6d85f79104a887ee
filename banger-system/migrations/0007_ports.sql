-- The ports of the host that lead to the guest, such as `loopback/tcp/8080/80 all/udp/53/53`.
ALTER TABLE vms ADD COLUMN ports TEXT NOT NULL DEFAULT '';
