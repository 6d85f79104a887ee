//! Checks of copies into and out of a guest, compared entry by entry.

use anyhow::{Result, ensure};

use super::{Check, script};
use crate::host::Host;

pub(super) const CHECKS: &[(&str, Check)] = &[
    ("a tree is the same on the other side of a copy, entry by entry", trees),
    ("a log that grows and files without a length are copied whole", living_files),
];

/// Creates a tree with everything that a copy keeps, and what it leaves out.
const MAKE: &str = r#"
    mkdir -p t/dir/sub; cd t
    echo x > file; ln file dir/second; chmod 640 file
    ln -s /etc/passwd away; ln -s file near
    truncate -s 300M holes; printf data | dd of=holes bs=1 seek=200M conv=notrunc status=none
    mkfifo pipe; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'
    touch "odd
name"
    chmod 1777 dir; chmod 2750 dir/sub
    touch -d @1000000000 dir/sub file; touch -h -d @1100000000 near; touch -d @1200000000 dir"#;
/// Lists such a tree: names, kinds, permissions, times, targets, lengths, link counts, contents, and whether the sparse
/// file is still sparse.
const LIST: &str = r"
    find . ! -type s ! -type p -printf '%P %y %#m %Ts %l' \( -type f -printf ' %s %n' -o -true \) -printf '\n' | sort
    find . -type f ! -name holes -exec sha256sum {} + | sort
    tail -c +209715201 holes | head -c 4; echo
    [ $(stat -c %b holes) -lt 1000 ] && echo sparse";

fn trees(host: &Host) -> Result<()> {
    let session = format!(
        "
        make() {{ cat <<'END'{MAKE}
END
        }}
        list() {{ cat <<'END'{LIST}
END
        }}
        rm -rf copies; mkdir copies; cd copies; umask 0
        banger vm create --quiet --vcpu 1 --name copy > /dev/null
        make | sh -e
        banger vm cp t copy: 2> said
        (cd t; list | sh -e) > here
        banger vm exec copy -- sh -ec \"cd t; $(list)\" > there
        diff here there && grep -q sparse there && echo in
        grep -c 'is a fifo, and was not copied\\|is a socket, and was not copied' said

        banger vm exec copy -- sh -ec \"mkdir /srv/g; cd /srv/g; $(make)\"
        banger vm cp copy:/srv/g/t out 2> said
        banger vm exec copy -- sh -ec \"cd /srv/g/t; $(list)\" > there
        (cd out; list | sh -e) > here
        diff there here && grep -q sparse here && echo out
        grep -c 'is a fifo, and was not copied\\|is a socket, and was not copied' said
        (umask 077; banger vm cp -q copy:/srv/g/t strict)
        stat -c %a strict strict/dir strict/dir/sub | tr '\\n' ' '; echo

        banger vm cp --chown nobody -q here copy:/tmp/theirs
        banger vm exec copy -- stat -c %U /tmp/theirs
        banger vm cp -q copy:/srv/g/t/. - | banger vm cp -q - copy:/srv/again
        banger vm exec copy -- sh -ec 'cd /srv; diff g/t/file again/file && echo piped'
        banger vm cp -q copy:/srv/g/t copy:/srv/twin
        banger vm exec copy -- sh -ec \"cd /srv/twin; $(list)\" | diff there - && echo between
        tar -cz t/file t/dir | banger vm cp -q - copy:/srv/unpacked
        banger vm cp -q -r copy:/srv/unpacked/t/file copy:/srv/g/t/dir/. several
        ls several | tr '\\n' ' '; echo
        head -c 64M /dev/urandom > big
        banger vm cp -q big copy:/srv/again/ & copy=$!
        for n in $(seq 300); do
            banger vm exec copy -- sh -c 'ls -d /srv/again/.banger-*' > /dev/null 2>&1 && break; sleep 0.1
        done
        kill -TERM $copy; wait $copy || echo ended $?
        for n in $(seq 100); do
            banger vm exec copy -- sh -c '! ls -d /srv/again/.banger-* && ! ls /srv/again/big' > /dev/null 2>&1 \\
                && echo cleared && break
            sleep 0.1
        done
        banger vm delete --force copy > /dev/null"
    );
    let out = script(host, "alice", &session)?;
    let seen: Vec<_> = out.lines().map(str::trim_end).collect();
    let expect = [
        "in",
        "2",
        "out",
        "2",
        "700 1700 2700",
        "nobody",
        "piped",
        "between",
        "file second sub",
        "ended 143",
        "cleared",
    ];
    ensure!(seen == expect, "{out}");
    Ok(())
}

fn living_files(host: &Host) -> Result<()> {
    let session = r"
        rm -rf copies; mkdir copies; cd copies
        banger vm create --quiet --vcpu 1 --name copy > /dev/null
        banger vm exec -d copy -- sh -c 'while :; do seq 1000; sleep 0.2; done > /srv/log' > /dev/null
        banger vm exec copy -- sh -c 'until [ -s /srv/log ]; do sleep 0.1; done'
        for n in 1 2 3 4 5; do
            banger vm cp -q copy:/srv/log log.$n
            banger vm exec copy -- head -c $(stat -c %s log.$n) /srv/log | cmp - log.$n && echo whole
        done
        for file in /proc/version /sys/class/net/lo/mtu; do
            banger vm cp -q copy:$file out; banger vm exec copy -- cat $file | cmp - out && echo out
            banger vm cp -q $file copy:/srv/in; banger vm exec copy -- cat /srv/in | cmp - $file && echo in
            rm -f out
        done
        banger vm cp -q copy:/proc/cpuinfo out; grep -q ^processor out && echo processors
        banger vm cp -q copy:/dev/null out || echo refused
        banger vm delete --force copy > /dev/null";
    let out = script(host, "alice", session)?;
    let seen: Vec<_> = out.lines().collect();
    let expect =
        ["whole", "whole", "whole", "whole", "whole", "out", "in", "out", "in", "processors", "refused"];
    ensure!(seen == expect, "{out}");
    Ok(())
}
