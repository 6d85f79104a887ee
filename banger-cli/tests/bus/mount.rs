//! Directories of this host in a sandbox, with the real agent and FUSE of this host. Each test has mounts of its own.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    mount::{MountPropagationFlags, mount_change},
    process::geteuid,
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::host::{Ended, Host, skip, until};

/// A host with a sandbox, and a directory to mount.
struct Bench {
    host: Host,
    /// The directory on the host, and where it is in the sandbox.
    outside: PathBuf,
    inside: PathBuf,
}

impl Bench {
    /// Returns `None` if this host has no FUSE, or the user may not mount.
    fn new() -> Option<Self> {
        if !geteuid().is_root() || fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
            skip("root and /dev/fuse");
            return None;
        }
        // SAFETY: a mount namespace of this thread's own changes nothing about its memory or descriptors.
        #[expect(unsafe_code, reason = "the call is unsafe for flags that are not given here")]
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let host = Host::new();
        let created = host.banger(&["vm", "create", "-q", "--name", "lasting", "--image", "debian"]);
        assert_eq!(created.status, 0, "{created:?}");
        let (outside, inside) = (host.path("outside"), host.path("guest/inside"));
        fs::create_dir(&outside).unwrap();
        Some(Self { host, outside, inside })
    }

    fn value(&self, more: &str) -> String {
        format!("{}:{}{more}", self.outside.display(), self.inside.display())
    }

    fn words<'a>(&'a self, value: &'a str, script: &'a str) -> Vec<&'a str> {
        let inside = self.inside.to_str().unwrap();
        ["vm", "exec", "-n", "--mount", value, "-w", inside, "lasting", "--", "bash", "-euc", script].into()
    }

    /// Runs a script in the mounted directory.
    fn run(&self, script: &str) -> Ended {
        self.host.banger(&self.words(&self.value(""), script))
    }

    fn check(&self, script: &str, output: &str) {
        let ended = self.run(script);
        assert_eq!((ended.status, ended.output.as_str(), ended.errors.as_str()), (0, output, ""), "{script}");
    }

    /// Returns the lines of the kernel's table of mounts about the directory.
    fn mounted(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let inside = self.inside.to_str().unwrap();
        table.lines().filter(|line| line.contains(inside)).map(str::to_owned).collect()
    }
}

#[test]
fn programs_work_in_a_mounted_directory() {
    let Some(bench) = Bench::new() else { return };
    fs::write(bench.outside.join("from-host"), "hello\n").unwrap();
    bench.check("cat from-host; echo back > from-guest; stat -c %U from-host", "hello\nroot\n");
    assert_eq!(fs::read_to_string(bench.outside.join("from-guest")).unwrap(), "back\n");
    until("it is unmounted", || bench.mounted().is_empty());

    // Large files, holes, truncation and appending.
    bench.check(
        "dd if=/dev/urandom of=big bs=1M count=9 status=none; cp big copy; cmp big copy
         truncate -s 5000000 big; cmp -n 5000000 big copy; stat -c %s big
         printf one > log; for word in two three; do printf $word >> log; done; cat log",
        "5000000\nonetwothree",
    );
    let copied = fs::read(bench.outside.join("copy")).unwrap();
    assert_eq!(copied.len(), 9 << 20);
    assert!(fs::read(bench.outside.join("big")).unwrap() == copied[..5_000_000]);

    // Trees.
    symlink("../from-host", bench.outside.join("link")).unwrap();
    bench.check(
        "mkdir -p tree/a/b; for n in $(seq 200); do echo $n > tree/a/b/$n; done; ln -s b/7 tree/a/seven
         ln tree/a/b/1 tree/twin; chmod 750 tree/a; touch -d @1000000000 tree/a/b/2; cp -a tree other
         diff -r tree other; stat -c '%a %Y %h' other/a other/a/b/2 other/twin | cut -d ' ' -f 1,2 | sed -n 2p
         stat -c %a other/a; cat other/a/seven; mv other/a/b moved; ls moved | wc -l; rm -r tree other moved; ls",
        "644 1000000000\n750\n7\n200\nbig\ncopy\nfrom-guest\nfrom-host\nlink\nlog\n",
    );
}

#[test]
fn git_python_and_locks_work_in_a_mounted_directory() {
    let Some(bench) = Bench::new() else { return };
    let git = "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null; git() { command git -c user.name=a -c user.email=a@a \"$@\"; }";
    bench.check(
        &format!(
            "{git}; git init -qb main; mkdir src; for n in $(seq 50); do echo $n > src/$n; done; git add .; git commit -qm one
             git status --short; echo more >> src/7; git status --short; git stash -q; git gc -q; git fsck > /dev/null 2>&1; git log --format=%s"
        ),
        " M src/7\none\n",
    );
    let on_host = Command::new("git")
        .args(["-c", "safe.directory=*", "log", "--format=%s"])
        .current_dir(&bench.outside)
        .output()
        .unwrap();
    assert_eq!(on_host.stdout, b"one\n");
    // A map that is written, one that is read, locks among processes, and attributes with names.
    let python = "import mmap, os, fcntl
with open('map', 'w+b') as f:
    f.truncate(100000)
    m = mmap.mmap(f.fileno(), 100000)
    m[70000:70005] = b'paged'
    m.flush(); m.close()
m = mmap.mmap(os.open('map', os.O_RDONLY), 0, prot=mmap.PROT_READ)
print(m[70000:70005].decode())
a, b = open('lock', 'w'), open('lock', 'w')
fcntl.flock(a, fcntl.LOCK_EX)
try:
    fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print('locked')
try:
    os.setxattr('lock', 'user.x', b'1')
except OSError as error:
    print(os.strerror(error.errno))
os.remove('lock'); a.write('still'); a.flush(); print(os.fstat(a.fileno()).st_size)
";
    let script = format!("python3 - <<'END'\n{python}END\n");
    bench.check(&script, "paged\nlocked\nOperation not supported\n5\n");
    assert_eq!(fs::read(bench.outside.join("map")).unwrap()[70000..70005], *b"paged");
}

#[test]
fn nothing_outside_is_reached_and_nothing_gets_more_rights() {
    let Some(bench) = Bench::new() else { return };
    fs::write(bench.host.path("secret"), "outside").unwrap();
    fs::write(bench.outside.join("plain"), "").unwrap();
    // Links are followed in the sandbox, which on this host is the same file system.
    symlink("../secret", bench.outside.join("up")).unwrap();
    let script = "cat up 2> /dev/null || echo none; cp /bin/true tool; chmod 4755 tool; stat -c %a tool
        mkfifo pipe 2> /dev/null || echo no pipe; mknod device c 1 3 2> /dev/null || echo no device
        chown 77:77 plain; stat -c %u plain; ls /proc/self/cwd/.. > /dev/null; touch -d @5 up -h; stat -c %Y up";
    bench.check(script, "none\n755\nno pipe\nno device\n0\n5\n");
    assert_eq!(fs::metadata(bench.outside.join("tool")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(bench.outside.join("plain")).unwrap().uid(), 0);
    assert_eq!(fs::read_to_string(bench.host.path("secret")).unwrap(), "outside");
    let mount = "grep guest/inside /proc/self/mounts | cut -d ' ' -f 1,3,4";
    let ended = bench.run(mount);
    assert!(
        ended.output.starts_with("banger fuse.banger rw,nosuid,nodev")
            && ended.output.contains("default_permissions"),
        "{ended:?}"
    );
}

#[test]
fn a_read_only_mount_is_not_changed() {
    let Some(bench) = Bench::new() else { return };
    fs::write(bench.outside.join("a"), "kept").unwrap();
    let script = "cat a; echo x > a || echo refused; touch b || echo refused; rm -f a || echo refused
        mount -o remount,rw . && echo x > a || echo refused";
    let ended = bench.host.banger(&bench.words(&bench.value(":ro"), script));
    assert_eq!(
        (ended.status, ended.output.as_str()),
        (0, "keptrefused\nrefused\nrefused\nrefused\n"),
        "{ended:?}"
    );
    assert!(ended.errors.contains("Read-only file system"), "{ended:?}");
    assert_eq!(fs::read_to_string(bench.outside.join("a")).unwrap(), "kept");
}

#[test]
fn a_user_of_the_sandbox_sees_the_files_as_their_own() {
    let Some(bench) = Bench::new() else { return };
    fs::set_permissions(bench.host.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(bench.outside.join("a"), "").unwrap();
    fs::set_permissions(&bench.outside, fs::Permissions::from_mode(0o700)).unwrap();
    let value = bench.value("");
    let inside = bench.inside.to_str().unwrap();
    let script = "cd \"$0\"; id -u; stat -c '%u %g' a; echo x > b; stat -c '%u %g' b";
    let words = [
        "exec", "-n", "-u", "4321:77", "--mount", &value, "-w", "/", "lasting", "--", "sh", "-euc", script,
        inside,
    ];
    let ended = bench.host.banger(&words);
    assert_eq!((ended.output.as_str(), ended.status), ("4321\n4321 77\n4321 77\n", 0), "{ended:?}");
    assert_eq!(fs::metadata(bench.outside.join("b")).unwrap().uid(), 0);
}

#[test]
fn a_mount_ends_with_its_client_and_programs_get_an_error() {
    let Some(bench) = Bench::new() else { return };
    fs::write(bench.outside.join("a"), "text").unwrap();
    let value = bench.value("");
    // It runs on after its client, since it is in a session of its own, and says how it fared.
    let told = bench.host.path("told");
    let script = format!(
        "exec 3< a; echo ready; trap '' HUP TERM; while cat a > /dev/null 2>&1; do sleep 0.05; done; \
         head -c 1 <&3 > /dev/null 2> {} || true",
        told.display()
    );
    let script = format!("setsid bash -c {} & sleep 1000", shell_quoted(&script));
    let mut client =
        bench.host.command(&bench.words(&value, &script)).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    client.kill().unwrap();
    client.wait().unwrap();
    until("it is unmounted", || bench.mounted().is_empty());
    let connected = |text: String| text.contains("not connected");
    // The agent of this test ends what a command has started; if it did so, there is nobody who could hang.
    until("the program has got an error or was ended", || {
        fs::read_to_string(&told).is_ok_and(connected) || !is_running(&told)
    });
}

/// Returns whether a program has this in its command line.
fn is_running(path: &Path) -> bool {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut lines = processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
    lines.any(|line| line.contains(path.to_str().unwrap()))
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[test]
fn an_unmount_in_the_sandbox_is_reported_and_the_host_stays_as_it_is() {
    let Some(bench) = Bench::new() else { return };
    fs::write(bench.outside.join("a"), "").unwrap();
    let value = bench.value("");
    let script = "cd /; umount -l \"$OLDPWD\"; read line; ls -A \"$OLDPWD\"";
    let words = bench.words(&value, script);
    let words: Vec<&str> = words.into_iter().filter(|word| *word != "-n").collect();
    let mut command = bench.host.command(&words);
    let mut client =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(client.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let expect = format!(
        "note: {} is no longer mounted at {} in lasting: it was unmounted there.\n",
        bench.outside.display(),
        bench.inside.display()
    );
    assert_eq!(line, expect);
    client.stdin.take().unwrap().write_all(b"\n").unwrap();
    let ended = client.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stdout), (Some(0), Vec::new()));
    assert!(bench.outside.join("a").exists());
}

#[test]
fn an_edit_on_the_host_is_seen_within_seconds() {
    let Some(bench) = Bench::new() else { return };
    fs::write(bench.outside.join("a"), "old").unwrap();
    let value = bench.value("");
    let script = "cat a; echo; while ! grep -q new a; do sleep 0.05; done; ls; while test ! -e late; do sleep 0.05; done; echo seen";
    let mut client = bench.host.command(&bench.words(&value, script)).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "old");
    fs::File::create(bench.outside.join("a")).unwrap().write_all(b"new").unwrap();
    assert_eq!(lines.next().unwrap(), "a");
    fs::write(bench.outside.join("late"), "").unwrap();
    assert_eq!(lines.next().unwrap(), "seen");
    assert!(client.wait().unwrap().success());
}

#[test]
fn what_cannot_be_mounted_is_refused_before_a_sandbox_exists() {
    let host = Host::new();
    fs::create_dir(host.path("d")).unwrap();
    fs::write(host.path("file"), "").unwrap();
    let path = |name: &str| host.path(name).to_str().unwrap().to_owned();
    for (value, status, expect) in [
        (path("missing"), 125, "No such file or directory"),
        (path("file"), 125, "Not a directory"),
        ("/proc:/mnt".to_owned(), 125, "no files of users"),
        ("/".to_owned(), 125, "cannot mount / at its own path: the guest needs what is there.\nhint: "),
        (format!("{}:/proc/x", path("d")), 2, "the guest needs what is there"),
        (format!("{}:mnt", path("d")), 2, "a path in the sandbox begins with /"),
        ("type=bind,src=/a,dst=/b".to_owned(), 2, "hint: write `--mount DIR:/PATH`"),
    ] {
        let ended = host.banger(&["run", "--rm", "-q", "--image", "debian", "--mount", &value, "--", "true"]);
        assert!(ended.status == status && ended.errors.contains(expect), "{value}: {ended:?}");
    }
    for (value, expect) in [
        (path("d"), format!("write `-v {0}:{0}`.", path("d"))),
        ("d:/mnt".to_owned(), "write `-v ./d:/mnt`.".to_owned()),
    ] {
        let ended = host.banger(&["run", "--rm", "-q", "--image", "debian", "-v", &value, "--", "true"]);
        assert!(ended.status == 2 && ended.errors.contains(&expect), "{value}: {ended:?}");
    }
    let value = format!("{}:/mnt", path("d"));
    for more in [
        &["run", "-d", "-v", &value, "--image", "debian"][..],
        &["exec", "-d", "-v", &value, "x", "--", "true"],
    ] {
        let ended = host.banger(more);
        assert!(
            ended.status == 125 && ended.errors.contains("hint: leave out `--detach` or `--mount`."),
            "{ended:?}"
        );
    }
    let ended = host.banger(&["exec", "--session", "s", "-v", &value, "x"]);
    assert!(ended.errors.contains("hint: leave out `--session` or `--mount`."), "{ended:?}");
    assert_eq!(host.calls("CreateVM").len(), 0);
}

#[test]
fn a_refusal_of_the_agent_ends_the_command_before_it_runs() {
    let Some(bench) = Bench::new() else { return };
    fs::write(bench.host.path("file"), "").unwrap();
    let value = format!("{}:{}", bench.outside.display(), bench.host.path("file").display());
    let ended = bench.host.banger(&["exec", "-n", "--mount", &value, "lasting", "--", "echo", "ran"]);
    assert_eq!((ended.status, ended.output.as_str()), (125, ""), "{ended:?}");
    let expect =
        format!("error: cannot mount at {} in the guest: File exists.\n", bench.host.path("file").display());
    assert_eq!(ended.errors, expect);
}

#[test]
fn a_run_mounts_for_its_command_only() {
    let Some(bench) = Bench::new() else { return };
    fs::write(bench.outside.join("a"), "text").unwrap();
    let (value, inside) = (bench.value(""), bench.inside.to_str().unwrap());
    let run = ["run", "--rm", "-q", "-n", "--name", "box", "--image", "debian", "-v", &value, "-w", inside];
    let ended = bench.host.banger(&[&run[..], &["--", "cat", "a"]].concat());
    assert_eq!(ended, Ended { status: 0, output: "text".into(), errors: String::new() });
    until("it is unmounted", || bench.mounted().is_empty());
}

#[test]
fn a_directory_is_mounted_in_another_one_in_any_order() {
    let Some(bench) = Bench::new() else { return };
    let (lower, below) = (bench.host.path("lower"), bench.inside.join("below"));
    fs::create_dir(&lower).unwrap();
    fs::write(lower.join("name"), "lower").unwrap();
    fs::write(bench.outside.join("name"), "upper").unwrap();
    let values = [bench.value(""), format!("{}:{}:ro,Z", lower.display(), below.display())];
    let inside = bench.inside.to_str().unwrap();
    for [first, second] in [[0, 1], [1, 0]] {
        let options = ["exec", "-n", "-v", &values[first], "-v", &values[second], "-w", inside, "lasting"];
        let ended = bench.host.banger(&[&options[..], &["--", "cat", "name", "below/name"]].concat());
        assert_eq!(ended, Ended { status: 0, output: "upperlower".into(), errors: String::new() });
        until("both are unmounted", || bench.mounted().is_empty());
    }
    // It is made for the mount.
    assert!(bench.outside.join("below").is_dir());
}

#[test]
fn an_agent_of_an_earlier_version_is_told_apart() {
    let host = Host::new();
    let created = host.banger(&["vm", "create", "-q", "--name", "web", "--image", "debian"]);
    assert_eq!(created.status, 0, "{created:?}");
    let value = format!("{}:/mnt", host.path("").display());
    let ended = host.banger(&["exec", "-n", "-v", &value, "web", "--", "echo", "ran"]);
    let expect = "error: web cannot mount directories.\n\
        hint: a sandbox that was started by an earlier version needs `banger vm restart web`.\n";
    assert_eq!(ended, Ended { status: 125, output: String::new(), errors: expect.into() });
}

#[test]
fn a_mount_below_another_one_is_gone_with_it() {
    let Some(bench) = Bench::new() else { return };
    fs::write(bench.outside.join("a"), "text").unwrap();
    let value = bench.value("");
    let begin = |script: &str| {
        let mut client =
            bench.host.command(&bench.words(&value, script)).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        client
    };
    let mut clients = [begin("echo ready; sleep 1000"), begin("echo ready; sleep 1000")];
    assert_eq!(bench.mounted().len(), 2);
    // The lower one ends first.
    for client in &mut clients {
        client.kill().unwrap();
        client.wait().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    until("both are unmounted", || bench.mounted().is_empty());
    bench.check("cat a", "text");
}
